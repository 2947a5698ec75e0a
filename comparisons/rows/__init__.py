"""What each column of the comparison is measured on, one question to a file: loss, reconstruction, superposition and the like."""

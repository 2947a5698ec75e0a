"""What there is to know of each node of a circuit."""

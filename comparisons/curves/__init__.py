"""The curve of a circuit's bits against its divergence, and all that it is read from."""

"""A circuit as a program of its own: exact, or frozen."""

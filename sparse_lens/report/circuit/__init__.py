"""A circuit, drawn, and its page."""

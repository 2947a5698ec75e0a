"""Edges: single weights between kept nodes."""

"""Circuits and graphs in the formats of others."""

"""The full comparison: its cells as jobs, the statistics over them, and what they do not show."""

"""The part of the report that `sparse-lens compare --full` adds: curves, rows, and their files."""

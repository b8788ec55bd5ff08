"""The systems of the source papers, runnable by name."""

"""The main jobs on built-in phantoms, from data to a report."""

"""Formats of points, a module each; `landmarks` chooses among them."""

"""Crops of images too large for memory: their index, and what reads them."""

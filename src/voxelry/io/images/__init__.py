"""Formats of images, a module each; `image` chooses among them."""

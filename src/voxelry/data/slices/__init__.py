"""Single slices of a volume with clicks, and the shapes that they are cut from."""

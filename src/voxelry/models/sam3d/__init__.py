"""SAM 3D Objects in plain PyTorch: a whole object from one image, by its coarse structure and then its surface."""

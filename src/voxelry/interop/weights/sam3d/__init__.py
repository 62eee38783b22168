"""SAM 3D Objects (facebookresearch/sam-3d-objects): its modules' weights, and whole checkpoint folders."""

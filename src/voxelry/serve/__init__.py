"""The page in the browser and its server: images, predictions, corrections; `voxelry view`."""

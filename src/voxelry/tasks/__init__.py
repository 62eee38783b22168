"""What voxelry can learn to do: one folder each, the same files in every one."""

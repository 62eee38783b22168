"""Settings that `voxelry train` finds beside its own."""

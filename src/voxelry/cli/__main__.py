"""`python -m voxelry.cli`."""

from voxelry.cli import main

main()

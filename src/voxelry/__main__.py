"""`python -m voxelry`."""

from voxelry.cli import main

main()

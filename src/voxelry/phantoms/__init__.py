"""Invented anatomy and cells, to try everything without anybody's data."""

from voxelry.phantoms.phantoms import LABEL_NAMES, LANDMARK_NAMES, make_phantom, write_phantoms

__all__ = ["LABEL_NAMES", "LANDMARK_NAMES", "make_phantom", "write_phantoms"]

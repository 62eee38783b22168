"""Invented anatomy and cells, to try everything without anybody's data."""

from voxelry.phantoms.phantoms import KINDS, LABEL_NAMES, LANDMARK_NAMES, make_phantom, write_phantoms

__all__ = ["KINDS", "LABEL_NAMES", "LANDMARK_NAMES", "make_phantom", "write_phantoms"]

"""What a worse scanner would have made of an image."""

from voxelry.data.degrade.degrade import Degrade

__all__ = ["Degrade"]

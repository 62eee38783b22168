"""What every image goes through before a network sees it."""

from voxelry.data.preprocess.preprocess import Preprocess, move, orientation_steps

__all__ = ["Preprocess", "move", "orientation_steps"]

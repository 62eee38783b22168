"""What every image goes through before a network sees it."""

from voxelry.data.preprocess.preprocess import Preprocess, move

__all__ = ["Preprocess", "move"]

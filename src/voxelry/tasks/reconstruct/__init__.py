"""Whole organs from one slice and a click."""

from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.task import ReconstructTask

__all__ = ["ReconstructPrediction", "ReconstructTask"]

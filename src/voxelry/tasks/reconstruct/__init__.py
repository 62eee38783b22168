"""Whole organs from one slice and a click."""

from voxelry.tasks.reconstruct.flow import ReconstructFlowTask
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.task import ReconstructTask

__all__ = ["ReconstructFlowTask", "ReconstructPrediction", "ReconstructTask"]

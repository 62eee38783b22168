"""Whole organs from one slice and a click."""

from voxelry.core.lazy import lazily

_PLACES = {
    "ReconstructFlowTask": "voxelry.tasks.reconstruct.flow",
    "ReconstructTwoStageTask": "voxelry.tasks.reconstruct.sam3d",
    "ReconstructPrediction": "voxelry.tasks.reconstruct.predict",
    "ReconstructTask": "voxelry.tasks.reconstruct.task",
}

__all__ = [*_PLACES]

__getattr__ = lazily(__name__, _PLACES)

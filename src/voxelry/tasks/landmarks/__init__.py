"""Named points in millimetres from heatmaps."""

from voxelry.core.lazy import lazily

_PLACES = {
    "LandmarkPrediction": "voxelry.tasks.landmarks.predict",
    "LandmarkTask": "voxelry.tasks.landmarks.task",
    "to_landmark_set": "voxelry.tasks.landmarks.predict",
}

__all__ = [*_PLACES]

__getattr__ = lazily(__name__, _PLACES)

"""Named points in millimetres from heatmaps."""

from voxelry.tasks.landmarks.predict import LandmarkPrediction, to_landmark_set
from voxelry.tasks.landmarks.task import LandmarkTask

__all__ = ["LandmarkPrediction", "LandmarkTask", "to_landmark_set"]

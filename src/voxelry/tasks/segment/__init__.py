"""Instance segmentation: every object of an image with its box, class, score and outline."""

from voxelry.tasks.segment.predict import InstancePrediction
from voxelry.tasks.segment.task import SegmentTask

__all__ = ["InstancePrediction", "SegmentTask"]

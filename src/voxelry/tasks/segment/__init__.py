"""Instance segmentation: every object of an image with its box, class, score and outline."""

from voxelry.core.lazy import lazily

_PLACES = {
    "InstancePrediction": "voxelry.tasks.segment.predict",
    "SegmentTask": "voxelry.tasks.segment.task",
}

__all__ = [*_PLACES]

__getattr__ = lazily(__name__, _PLACES)

"""Pretraining: a U-Net that learns to denoise unlabelled images, and draws new ones."""

from voxelry.core.lazy import lazily

_PLACES = {
    "PretrainPrediction": "voxelry.tasks.pretrain.predict",
    "PretrainTask": "voxelry.tasks.pretrain.task",
}

__all__ = [*_PLACES]

__getattr__ = lazily(__name__, _PLACES)

"""Translation: one or more contrasts of an image to another, by a bridge, a flow, a diffusion or plain regression."""

from voxelry.core.lazy import lazily

_PLACES = {
    "TranslatePrediction": "voxelry.tasks.translate.predict",
    "TranslateTask": "voxelry.tasks.translate.task",
}

__all__ = [*_PLACES]

__getattr__ = lazily(__name__, _PLACES)

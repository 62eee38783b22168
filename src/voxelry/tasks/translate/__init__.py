"""Translation: one or more contrasts of an image to another, by a bridge, a flow, a diffusion or plain regression."""

from voxelry.tasks.translate.predict import TranslatePrediction
from voxelry.tasks.translate.task import TranslateTask

__all__ = ["TranslatePrediction", "TranslateTask"]

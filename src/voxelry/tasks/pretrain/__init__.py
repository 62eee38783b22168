"""Pretraining: a U-Net that learns to denoise unlabelled images, and draws new ones."""

from voxelry.tasks.pretrain.predict import PretrainPrediction
from voxelry.tasks.pretrain.task import PretrainTask

__all__ = ["PretrainPrediction", "PretrainTask"]

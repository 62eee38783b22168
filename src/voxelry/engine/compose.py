"""The configuration of `voxelry train`, from Python."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

__all__ = ["compose_training"]


def compose_training(overrides: Sequence[str]) -> DictConfig:
    """The configuration of `voxelry train OVERRIDES`, for use from Python.

    Raises:
        hydra.errors.HydraException: an override names something unknown.
    """
    with initialize_config_module("voxelry.configs", version_base="1.3"):
        return compose("train", overrides=list(overrides))

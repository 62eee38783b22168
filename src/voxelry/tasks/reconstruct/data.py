"""The datasets of a reconstruction run: volumes with labels, seen as slices with clicks."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from voxelry.core.settings import keywords
from voxelry.data.parts import Splits
from voxelry.data.prepare.source import folder_template
from voxelry.data.slices.sources import SliceSource, VolumeSlices
from voxelry.data.splits import SPLITS
from voxelry.tasks.recipe import Recipe
from voxelry.tasks.reconstruct.prepared import build_prepared, reads_prepared
from voxelry.tasks.reconstruct.prompts import prompts
from voxelry.tasks.volumes import build_volumes, no_channels

__all__ = ["build_slices"]


def build_slices(
    config: DictConfig, *, ndim: int, recipe: Recipe, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """The volumes of a run as prompts, or the slices of a prepared folder; arguments as `engine.data.build_data`.

    Training prompts are drawn anew in every pass, the rest are always the same.

    Raises:
        DataError: a case without an organ that is asked for; or see `build_data`.
    """
    no_channels(config, recipe.name)
    if reads_prepared(config.root, config.layout):
        return build_prepared(config, ndim=ndim, augment=augment, seed=seed)
    splits = build_volumes(config, ndim=ndim, recipe=recipe, augment=augment, seed=seed)
    settings = keywords(config.slices)
    settings["organs"] = settings["organs"] or [1]
    sources: dict[str, SliceSource] = {part: VolumeSlices(getattr(splits, part)) for part in SPLITS}
    return replace(splits, template=folder_template(config.root), **prompts(sources, settings, seed))

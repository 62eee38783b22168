"""The datasets of a run over a crop index."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from voxelry.core.errors import ConfigError, DataError
from voxelry.core.settings import keywords
from voxelry.data.augment import Augment
from voxelry.data.crops.dataset import CropDataset, split_crops
from voxelry.data.crops.index import CropIndex
from voxelry.data.dataset import VolumeDataset
from voxelry.data.parts import Splits
from voxelry.data.preprocess import Preprocess
from voxelry.tasks.recipe import Recipe

__all__ = ["build_crops"]

_NORMALISATION = ("normalise", "window", "percentiles", "clip")
_SETTINGS = (*_NORMALISATION, "where", "margin", "fill", "boxes", "on_error")


def build_crops(
    config: DictConfig, *, ndim: int, recipe: Recipe, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """Split and wrap the crops of the index `config.index`; arguments and errors as `engine.data.build_data`.

    Images are normalised by the statistics of the whole image, which the index has; `preprocess` is what makes the
    same of an image that is predicted.
    """
    if recipe.required == "landmarks":
        raise ConfigError(
            f"data: a crop index holds no landmarks, which task={recipe.name} needs; expected data=volumes"
        )
    if config.index is None:
        raise ConfigError(
            "data.index: expected an index that voxelry index made, or data.root, the folder to be indexed"
        )
    settings: dict[str, Any] = {key: keywords(config)[key] for key in _SETTINGS}
    settings["seed"] = seed
    index = CropIndex(config.index, root=config.root)
    split = config.split
    names = split_crops(
        index,
        file=split.file,
        fractions=None if split.fractions is None else [float(share) for share in split.fractions],
        fold=split.fold if split.folds else None,
        folds=split.folds or 5,
        seed=split.seed,
    )
    if not names["train"]:
        raise DataError(
            f"{config.index}: no images are left for training after the split (of {len(index.files)} in all)"
        )
    still = CropDataset(index, names=names["train"], **settings)
    if config.check:
        still.check()
    moved = CropDataset(
        index, names=names["train"], augment=Augment(**keywords(augment)) if augment else None, **settings
    )
    sample = still[0]
    if sample.ndim != ndim:
        raise DataError(f"{sample.source}: crops of rank {sample.ndim}, but ndim={ndim} is configured")
    if recipe.required == "instances" and sample.masks is None:
        raise DataError(f"{sample.source}: no instances for this image in the index {config.index}")
    held_out = {
        part: CropDataset(index, names=names[part], **settings) if names[part] else VolumeDataset([])
        for part in ("validation", "test")
    }
    return Splits(
        train=moved,
        validation=held_out["validation"],
        test=held_out["test"],
        preprocess=Preprocess(orientation=None, **{key: settings[key] for key in _NORMALISATION}),
        names={part: list(names[part]) for part in ("train", "validation", "test")},
        unaltered=still.__getitem__,
    )

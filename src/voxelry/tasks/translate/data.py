"""The datasets of a run that turns one image into another: pairs of files, or volumes and their degraded selves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from voxelry.core.errors import ConfigError
from voxelry.core.settings import keywords
from voxelry.data.degrade import Degrade
from voxelry.data.degrade.dataset import DegradedDataset
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.find import find_cases, find_pairs
from voxelry.data.own_dataset import check_own_rank, dataset_class, own_suffix
from voxelry.data.pairs import PairDataset
from voxelry.data.parts import Splits, checked_splits, divide
from voxelry.data.preprocess import Preprocess
from voxelry.tasks.recipe import Recipe
from voxelry.tasks.volumes import changes, check_rank, choose_cache, no_channels, preprocessing

__all__ = ["build_degraded", "build_pairs"]


def build_pairs(
    config: DictConfig, *, ndim: int, recipe: Recipe, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """Find, split and wrap pairs of files; arguments and errors as `engine.data.build_data`.

    Training samples are drawn anew in every epoch: movement and patch. Held-out ones are whole and always the same.
    """
    no_channels(config, recipe.name)
    pairs = keywords(config.pairs)
    resample = bool(pairs.pop("resample", False))
    make = dataset_class(config, PairDataset)
    reads_own = own_suffix(config, PairDataset) is not None
    cases = _all_pairs(config, pairs)
    if not reads_own:
        check_rank(cases, ndim)
    common = {
        **_common(recipe, seed),
        "preprocess": Preprocess(**keywords(config.preprocess)),
        "resample": resample,
    }
    parts = divide(cases, config, seed)
    first = make(parts["train"][:1], **common)
    first.check()  # by the headers, before its pixels are read
    common["cache"] = choose_cache(config.cache, first, len(cases))
    train = make(parts["train"], **common)
    if reads_own:
        check_own_rank(train, ndim)
    train = make(parts["train"], **common, **changes(config, augment, train))
    validation, test = (make(parts[part], **common) for part in ("validation", "test"))
    return checked_splits(train, validation, test, unaltered=train.preprocessed)


def _all_pairs(config: DictConfig, pairs: dict[str, Any]) -> list[PairCase]:
    """The pairs of `config.root`, and of `config.roots`, which are then the split."""
    folders = {part: folder for part, folder in (keywords(config.get("roots")) or {}).items() if folder is not None}
    options = keywords(config.options)
    cases = find_pairs(config.root, config.layout, options=options, **pairs)
    if not folders:
        return cases
    cases = [replace(case, split="train") for case in cases]
    names = {case.name for case in cases}
    for part, folder in folders.items():
        for case in find_pairs(folder, config.layout, options=options, **pairs):
            name = f"{part}_{case.name}" if case.name in names else case.name
            cases.append(replace(case, split=part, name=name))
        names |= {case.name for case in cases}
    return cases


def build_degraded(
    config: DictConfig, *, ndim: int, recipe: Recipe, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """Find, split and wrap volumes and their degraded selves; arguments and errors as `engine.data.build_data`.

    Training samples are drawn anew in every epoch: movement, patch and degradation. Held-out ones are whole and always
    the same.
    """
    no_channels(config, recipe.name)
    if config.get("pairs") is not None:
        raise ConfigError("data: expected pairs or degrade, got both; set one of them to null")
    make = dataset_class(config, DegradedDataset)
    suffix = own_suffix(config, DegradedDataset)
    cases = find_cases(config.root, config.layout, options=keywords(config.options), suffix=suffix)
    if suffix is None:
        check_rank(cases, ndim)
    common = {
        **_common(recipe, seed),
        "preprocess": preprocessing(config, cases if suffix is None else ()),
        "degrade": Degrade(keywords(config.degrade)["steps"]),
    }
    parts = divide(cases, config, seed)
    common["cache"] = choose_cache(config.cache, make(parts["train"][:1], **common), len(cases))
    train = make(parts["train"], **common)
    if suffix is not None:
        check_own_rank(train, ndim)
    train = make(parts["train"], redraw=True, **common, **changes(config, augment, train))
    validation, test = (make(parts[part], **common) for part in ("validation", "test"))
    return checked_splits(train, validation, test, unaltered=train.still)


def _common(recipe: Recipe, seed: int) -> dict[str, Any]:
    """What all parts are made with; labels are read where the task measures on them."""
    need = [word for word in dict.fromkeys((*recipe.needs, *recipe.truth)) if word != "landmarks"]
    return {"need": need, "seed": seed}

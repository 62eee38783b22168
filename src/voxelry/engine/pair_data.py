"""The datasets of a run that turns one image into another: pairs of files, or volumes and their degraded selves."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from voxelry.core.errors import ConfigError
from voxelry.data.degrade import Degrade
from voxelry.data.degraded import DegradedDataset
from voxelry.data.layouts import find_cases
from voxelry.data.pairs import PairDataset, find_pairs
from voxelry.data.preprocess import Preprocess
from voxelry.engine.data import changes, check_rank, checked_splits, choose_cache, divide, preprocessing
from voxelry.engine.kinds import Kind
from voxelry.engine.splits import Splits, plain

__all__ = ["build_pair_data"]


def build_pair_data(
    config: DictConfig, *, ndim: int, kind: Kind, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """Find, split and wrap pairs; arguments and errors as `engine.data.build_data`.

    Training samples are drawn anew in every epoch: movement, patch, and degradation if there is one. Held-out ones
    are whole and always the same.

    Raises:
        ConfigError: both `pairs` and `degrade` are configured.
    """
    if config.get("degrade") is None:
        return _paired(config, ndim, kind, augment, seed)
    if config.get("pairs") is not None:
        raise ConfigError("data: expected pairs or degrade, got both; set one of them to null")
    return _degraded(config, ndim, kind, augment, seed)


def _paired(config: DictConfig, ndim: int, kind: Kind, augment: DictConfig | None, seed: int) -> Splits:
    pairs = plain(config.pairs)
    resample = bool(pairs.pop("resample", False))
    cases = find_pairs(config.root, config.layout, options=plain(config.options), **pairs)
    check_rank(cases, ndim)
    common = {
        **_common(kind, seed),
        "preprocess": Preprocess(**plain(config.preprocess)),
        "resample": resample,
    }
    parts = divide(cases, config, seed)
    first = PairDataset(parts["train"][:1], **common)
    first.check()  # by the headers, before its pixels are read
    common["cache"] = choose_cache(config.cache, first, len(cases))
    train = PairDataset(parts["train"], **common)
    train = PairDataset(parts["train"], **common, **changes(config, augment, train))
    validation, test = (PairDataset(parts[part], **common) for part in ("validation", "test"))
    return checked_splits(train, validation, test, unaltered=train.preprocessed)


def _degraded(config: DictConfig, ndim: int, kind: Kind, augment: DictConfig | None, seed: int) -> Splits:
    cases = find_cases(config.root, config.layout, options=plain(config.options))
    check_rank(cases, ndim)
    common = {
        **_common(kind, seed),
        "preprocess": preprocessing(config, cases),
        "degrade": Degrade(plain(config.degrade)["steps"]),
    }
    parts = divide(cases, config, seed)
    common["cache"] = choose_cache(config.cache, DegradedDataset(parts["train"][:1], **common), len(cases))
    train = DegradedDataset(parts["train"], **common)
    train = DegradedDataset(parts["train"], redraw=True, **common, **changes(config, augment, train))
    validation, test = (DegradedDataset(parts[part], **common) for part in ("validation", "test"))
    return checked_splits(train, validation, test, unaltered=train.still)


def _common(kind: Kind, seed: int) -> dict[str, Any]:
    """What all parts are made with; labels are read where the task measures on them."""
    need = [word for word in dict.fromkeys((*kind.needs, *kind.truth)) if word != "landmarks"]
    return {"need": need, "seed": seed}

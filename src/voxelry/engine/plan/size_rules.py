"""Decisions about sizes: strides, windows, batches, width, and the tiles of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from voxelry.engine.plan.memory import modelled
from voxelry.engine.plan.situation import Situation, each_axis, lengths, listed, seen_at_once
from voxelry.engine.plan_file import Decision
from voxelry.tasks.volumes import MARGIN, MOST_VOXELS

__all__ = ["SHARE", "gigabytes", "levels", "sizes", "step_of", "tiles", "window"]

SHARE = 0.8  # of the memory that may be taken
_TILE_SHARE = 0.5
_FLAT = 2.0  # an axis whose voxels are so much longer than the shortest isn't halved
_LEAST = 4  # voxels of the coarsest level
_SMALLEST = 32  # voxels per axis of windows that are made smaller for memory's sake
_NARROWEST = 8  # channels
_GPU_VOXELS = 4  # times as many voxels as on a processor
_GPU_BATCH = 2  # cases at once, at least, which a GPU has room for
_LARGER = (4.0, 3.0, 2.0, 1.5)  # tiles, in windows of the training
_AGAIN = "model.checkpointing"
# what the backward pass computes again, by what that costs: "norms" nothing on a processor, the last ones a third
_RECOMPUTED: tuple[tuple[str | bool, ...], ...] = (("none", "norms", "blocks"), (False, True))
_CHEAP = "norms"


def levels(situation: Situation) -> Iterator[Decision]:
    """How far each axis is halved from level to level: thick slices later than what lies within them, or never."""
    config = situation.config
    if not situation.is_open("model.strides") or config.model.get("multipliers") is None:
        return
    size, spacing = np.array(situation.largest, float), situation.spacing.copy()
    yield from _first_halving(situation, size, spacing)
    steps = []
    for _ in config.model.multipliers[1:]:
        halved = _halved(size, spacing)
        steps.append([2 if half else 1 for half in halved])
        size, spacing = np.where(halved, size / 2, size), np.where(halved, spacing * 2, spacing)
    deep = next((place for place, step in enumerate(steps) if set(step) == {1}), len(steps))
    if deep < len(steps) and situation.is_open("model.multipliers"):
        why = f"images of {listed(situation.largest)} are halved {deep} times"
        yield Decision("model.multipliers", list(config.model.multipliers[: deep + 1]), why)
        steps = steps[:deep]
    even = all(set(step) == {2} for step in steps)
    why = "voxels are about as long as wide" if even else f"voxels of {lengths(situation.spacing)}"
    yield Decision("model.strides", 2 if even else steps, why)


def _first_halving(situation: Situation, size: NDArray[np.float64], spacing: NDArray[np.float64]) -> Iterator[Decision]:
    """What a network does before its levels, by bands (`model.axes`) or blocks (`model.fold`); changes both arrays."""
    model = situation.config.model
    halved = _halved(size, spacing)
    some = halved.any() and not halved.all()
    why = f"thick slices or short axes, {lengths(spacing)}, aren't halved"
    if "axes" in model and model.axes is None:
        if some and situation.is_open("model.axes"):
            yield Decision("model.axes", [axis for axis, half in enumerate(halved) if half], why)
        size[halved], spacing[halved] = size[halved] / 2, spacing[halved] * 2
    elif isinstance(model.get("fold"), int) and model.fold > 1:
        fold = np.where(halved, model.fold, 1) if some else np.full(len(size), model.fold)
        if some and situation.is_open("model.fold"):
            yield Decision("model.fold", fold.tolist(), why)
        size /= fold
        spacing *= fold


def _halved(size: NDArray[np.float64], spacing: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which axes the next level halves: those long enough whose voxels aren't much longer than the others'."""
    long = size >= 2 * _LEAST
    return long & (spacing < _FLAT * spacing[long].min(initial=np.inf))


def step_of(config: DictConfig) -> tuple[int, ...]:
    """Voxels along each axis that the sizes of windows should be multiples of."""
    ndim, model = config.ndim, config.model
    count = len(model.get("multipliers") or ()) - 1
    strides = model.get("strides", 2)
    if count < 1:
        return (8,) * ndim
    each = [strides] * count if isinstance(strides, int) else list(strides)
    whole = np.prod([each_axis(step, ndim) for step in each], axis=0)
    if "axes" in model:
        chosen = range(ndim) if model.axes is None else model.axes
        whole = whole * [2 ** model.get("levels", 1) if axis in chosen else 1 for axis in range(ndim)]
    return tuple(int(step) for step in whole * each_axis(model.get("fold", 1), ndim))


def window(largest: Sequence[int], spacing: Sequence[float], most: int, step: Sequence[int]) -> tuple[int, ...]:
    """The largest window of at most `most` voxels that is about as long as wide in mm, in multiples of `step`.

    Args:
        largest: voxels along each axis of the images; no axis gets more than that, rounded up.
        spacing: mm.
        most: voxels; a window of one `step` is always answered.
        step: voxels, see `step_of`.
    """
    limits = np.array([-(-size // part) * part for size, part in zip(largest, step, strict=True)])
    found = np.minimum(limits, step)
    for edge in np.geomspace(min(spacing), max(limits * np.asarray(spacing)), 200):
        reached = (edge / np.asarray(spacing) / step).astype(int) * step
        size = np.clip(reached, np.minimum(limits, step), limits)
        if prod(size.tolist()) <= most:
            found = size
    return tuple(int(size) for size in found)


@dataclass(frozen=True)
class _Sizes:
    """What decides how much a training step takes.

    Attributes:
        batch: cases at once.
        accumulation: batches of a step.
        size: of windows; None where images are seen whole.
        width: channels of the network; None where it has no such setting.
        again: what the backward pass computes again; None where that is settled.
    """

    batch: int
    accumulation: int
    size: tuple[int, ...] | None
    width: int | None
    again: str | bool | None

    def in_config(self, situation: Situation) -> Situation:
        """The situation with what of it makes the network."""
        width = OmegaConf.select(situation.config, "model.width")
        chosen = ((_AGAIN, self.again, None), ("model.width", self.width, width))
        for setting, value, own in chosen:
            situation = situation if value == own else situation.after(Decision(setting, value))
        return situation


def sizes(situation: Situation) -> Iterator[Decision]:
    """Windows, batch, accumulation, width and recomputation: less, in order of harm, until they fit the memory.

    The order: norms and activations computed again, smaller batches, whole blocks computed again, smaller windows,
    fewer channels.
    """
    if not situation.cases:
        return
    chosen, needed = _fitting(situation)
    allowed = gigabytes(situation.machine.training_memory)
    told = "" if needed is None else f"; {gigabytes(needed)} of {allowed}"
    config, first = situation.config, _first(situation)
    if "patches" in config.data and situation.is_open("data.patches") and config.data.patches is not None:
        yield from _patches(situation, chosen)
    if situation.is_open("data.batch_size"):
        why = "as usual for this task" if chosen.batch == first.batch else "what the memory holds"
        yield Decision("data.batch_size", chosen.batch, why + told)
    if situation.is_open("trainer.grad_accumulation"):
        count = chosen.batch * chosen.accumulation
        why = f"a step learns from {count} case{'s' * (count > 1)}"
        yield Decision("trainer.grad_accumulation", chosen.accumulation, why)
    if chosen.width is not None and chosen.width != first.width:
        yield Decision("model.width", chosen.width, f"narrower, to fit the memory{told}")
    if chosen.again is not None:
        usual = "norms cost a processor nothing" if chosen.again == _CHEAP else "the memory holds all that is needed"
        yield Decision(_AGAIN, chosen.again, (usual if chosen.again == first.again else "to fit the memory") + told)


def _patches(situation: Situation, chosen: _Sizes) -> Iterator[Decision]:
    largest = listed(situation.largest)
    if chosen.size is None:
        yield Decision("data.patches", None, f"images of up to {largest} are learned from whole")
        return
    extent = lengths(np.array(chosen.size) * situation.spacing)
    why = f"{extent} of images of up to {largest}, in multiples of {listed(step_of(situation.config))}"
    if isinstance(situation.config.data.patches, DictConfig):
        yield Decision("data.patches.size", list(chosen.size), why)
        return
    margin = [min(MARGIN, size // 4) for size in chosen.size]
    yield Decision("data.patches", {"size": list(chosen.size), "margin": margin, "fill": "edge"}, why)


def _first(situation: Situation) -> _Sizes:
    """The sizes without a thought for memory."""
    config = situation.config
    batch, patches = int(config.data.batch_size), config.data.get("patches")
    if situation.machine.gpu and situation.is_open("data.batch_size"):
        batch = max(batch, _GPU_BATCH)
    width = OmegaConf.select(config, "model.width")
    usual = _Sizes(batch, int(config.trainer.grad_accumulation), None, width, next(iter(_recomputed(situation)), None))
    if "patches" not in config.data or patches is None:
        return usual
    if isinstance(patches, DictConfig):
        own = each_axis(patches.size, config.ndim)
        most = prod(own)
    else:
        own, most = situation.largest, MOST_VOXELS // batch
    if not situation.is_open("data.patches"):
        return replace(usual, size=own)
    most *= _GPU_VOXELS if situation.machine.gpu else 1
    return replace(usual, size=_window(situation, most))


def _recomputed(situation: Situation) -> tuple[str | bool, ...]:
    """What the backward pass may compute again, the quickest first; nothing where that is settled."""
    if not situation.is_open(_AGAIN):
        return ()
    now = situation.config.model.checkpointing
    ladder = next((ladder for ladder in _RECOMPUTED if type(now) is type(ladder[0])), ())
    return ladder[1:] if now == "auto" and not situation.machine.gpu else ladder


def _window(situation: Situation, most: int) -> tuple[int, ...] | None:
    """The window of so many voxels; None where it would hold every image."""
    size = window(situation.largest, situation.spacing.tolist(), most, step_of(situation.config))
    whole = all(part >= full for part, full in zip(size, situation.largest, strict=True))
    return None if whole and not isinstance(situation.config.data.patches, DictConfig) else size


def _fitting(situation: Situation) -> tuple[_Sizes, int | None]:
    """The first sizes that fit, and the bytes that they need; the smallest where none does, None where nobody knows."""
    now = _first(situation)
    while True:
        network = modelled(now.in_config(situation))
        if network is None:
            return replace(now, again=None), None
        needed = network.training(now.size or situation.largest, now.batch)
        if needed <= SHARE * situation.machine.training_memory:
            return now, needed
        smaller = _smaller(situation, now)
        if smaller is None:
            return now, needed
        now = smaller


def _smaller(situation: Situation, now: _Sizes) -> _Sizes | None:
    """The next sizes to try, see `sizes`; None where nothing is left."""
    ladder = _recomputed(situation)
    more = ladder[ladder.index(now.again) + 1 :] if now.again is not None else ()
    if more[:1] == (_CHEAP,):
        return replace(now, again=_CHEAP)
    if now.batch > 1 and situation.is_open("data.batch_size"):
        steps = now.accumulation * (2 if situation.is_open("trainer.grad_accumulation") else 1)
        return replace(now, batch=now.batch // 2, accumulation=steps)
    if more:
        return replace(now, again=more[0])
    size = now.size or situation.largest
    patches = situation.config.data.get("patches")
    if patches is not None and situation.is_open("data.patches") and max(size) > _SMALLEST:
        smaller = _window(situation, prod(size) // 2)
        if smaller is not None and smaller != now.size:
            return replace(now, size=smaller)
    if now.width is not None and now.width >= 2 * _NARROWEST and situation.is_open("model.width"):
        return replace(now, width=now.width // 2)
    return None


def tiles(situation: Situation) -> Iterator[Decision]:
    """Tiles of a prediction, as large as the memory allows, where the training sees windows."""
    if not situation.is_open("task.tile_size") or not isinstance(situation.config.data.get("patches"), DictConfig):
        return
    network = modelled(situation)
    if network is None or network.prediction(seen_at_once(situation)) is None:
        return
    size, step = seen_at_once(situation), step_of(situation.config)
    allowed = _TILE_SHARE * situation.machine.training_memory
    for factor in _LARGER:
        spacing = situation.spacing.tolist()
        tile = window(situation.largest, spacing, int(prod(size) * factor ** len(size)), step)
        tile = tuple(max(part, own) for part, own in zip(tile, size, strict=True))
        needed = network.prediction(tile)
        if needed is not None and needed <= allowed:
            why = f"as large as the memory allows ({gigabytes(needed)}); the training's are {listed(size)}"
            yield Decision("task.tile_size", list(tile), why)
            return
    yield Decision("task.tile_size", list(size), "as the training's windows: larger ones don't fit the memory")


def gigabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB"

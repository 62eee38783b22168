"""Instances that are corrected: deleted, merged, split, drawn, hidden. What is seen is what is written.

An instance keeps its id through all of it, in the page and in the files; new ones get ids that none had before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.io import write_image
from voxelry.ops.instances import Crop, Instances
from voxelry.tasks.segment.outputs import read_masks, write_masks, write_table
from voxelry.tasks.segment.predict import InstancePrediction

__all__ = ["MASKS", "EditedInstances", "Item", "divided", "joined", "voxel_within"]

MASKS, TABLE = ".instances.json", ".instances.csv"
_MOST_KINDS = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class Item:
    """An instance.

    Attributes:
        id: its number, from 1.
        score: in [0, 1].
        kind: its class, from 1.
        box: `(2 * ndim,)` index coordinates, all lows then all highs.
        crop: its window and mask.
        hidden: whether it was put out of sight.
    """

    id: int
    score: float
    kind: int
    box: NDArray[np.float32]
    crop: Crop
    hidden: bool = False

    @cached_property
    def voxels(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.crop[1]))

    @cached_property
    def place(self) -> NDArray[np.float64]:
        """Index of its voxel that is nearest to its centre of mass."""
        return voxel_within(self.crop)

    def with_mask(self, window: Sequence[slice], mask: NDArray[np.bool_], **changes: Any) -> Self:
        """Another mask, cut to what it holds, with a box around it."""
        held = [np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis}))) for axis in range(mask.ndim)]
        inner = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in held)
        cut = tuple(
            slice(part.start + own.start, part.start + own.stop) for part, own in zip(window, inner, strict=True)
        )
        box = np.array([part.start - 0.5 for part in cut] + [part.stop - 0.5 for part in cut], dtype=np.float32)
        return replace(self, crop=(cut, mask[inner].copy()), box=box, **changes)


class EditedInstances:
    """The instances of an answer, and what was done to them so far.

    Args:
        name: of the case.
        space: grid of the image.
        items: the instances.
    """

    def __init__(self, name: str, space: Space, items: Sequence[Item]):
        self.name, self.space = name, space
        self.items: tuple[Item, ...] = tuple(items)
        self.least = 0.0
        self._next = 1 + max((item.id for item in self.items), default=0)
        self._left = 0
        self._before: list[tuple[Item, ...]] = []

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Those of an answer's folder; None where it has none."""
        path = next(folder.glob(f"*{MASKS}"), None)
        if path is None:
            return None
        found = read_masks(path)
        items = [
            Item(number, float(score), int(kind), box, crop)
            for number, (score, kind, box, crop) in enumerate(
                zip(found.scores, found.classes, found.boxes, found.crops, strict=True), start=1
            )
        ]
        return cls(found.name, found.space, [item for item in items if item.voxels])

    @property
    def seen(self) -> list[Item]:
        """Those that are shown and saved."""
        return [item for item in self.items if not item.hidden and item.score >= self.least]

    def record(self) -> dict[str, Any]:
        """For the page: of each its numbers, its size in mm³ (mm² at rank 2) and a place in it in RAS mm.

        And `left`, how many of the voxels that were added last are other instances'.
        """
        places = self.space.to_world(np.array([item.place for item in self.items]).reshape(-1, self.space.ndim))
        steps = self.space.affine[:3, : self.space.ndim]
        size = float(np.sqrt(np.linalg.det(steps.T @ steps)))  # of a voxel
        shown = {item.id for item in self.seen}
        rows = [
            {
                "id": item.id,
                "score": item.score,
                "class": item.kind,
                "size": item.voxels * size,
                "position": place.tolist(),
                "hidden": item.hidden,
                "seen": item.id in shown,
            }
            for item, place in zip(self.items, places, strict=True)
        ]
        return {"rows": rows, "least": self.least, "steps": len(self._before), "left": self._left}

    def labels(self, *, classes: bool = False) -> NDArray[Any]:
        """The ids, or the classes, of what is seen, `(*spatial)`; the higher score on top."""
        shown = self.seen
        ids = np.array([0, *(item.kind if classes else item.id for item in shown)])
        dtype = np.uint16 if self._next <= np.iinfo(np.uint16).max else np.int32
        found: NDArray[Any] = ids.astype(dtype)[np.asarray(self._prediction(shown).label_volume)]
        return found

    def write(self, folder: Path) -> None:
        """Write what is seen in place of what was predicted: the label volume, the table, the masks.

        Raises:
            FileError: the disk refuses.
        """
        prediction, ids = self._prediction(self.seen), [item.id for item in self.seen]
        write_image(folder / f"{self.name}.nii.gz", self.labels()[None], self.space)
        write_table(folder / f"{self.name}{TABLE}", prediction, ids=ids)
        write_masks(folder / f"{self.name}{MASKS}", prediction, ids=ids)

    def edit(self, asked: Mapping[str, Any], drawn: Crop | None = None) -> None:
        """Do one thing, or undo the last one; the least score is no step that is undone.

        Args:
            asked: `do`, one of `delete`, `hide`, `show`, `merge`, `split`, `add`, `score` or `undo`; with `ids`, the
                instances that it is done to, `points` in RAS mm, two of them to split at, `class`, the number of that
                of what is added, or `least`, the score below which nothing is seen.
            drawn: the voxels to add as an instance. Those of other instances that are seen stay theirs.

        Raises:
            SettingError: something else, or what can't be done.
        """
        word = asked.get("do")
        ways = {
            "delete": self._deleted,
            "hide": lambda given: self._hidden(given, hide=True),
            "show": lambda given: self._hidden(given, hide=False),
            "merge": self._merged,
            "split": self._split,
            "add": lambda given: self._added(given, drawn),
        }
        self._left = 0
        if word == "score":
            self.least = _score(asked.get("least"))
        elif word == "undo":
            if not self._before:
                raise SettingError("undo: nothing was changed")
            self.items = self._before.pop()
        elif isinstance(word, str) and word in ways:
            items = tuple(ways[word](asked))
            self._before.append(self.items)
            self.items = items
            self._next = max(self._next, 1 + max((item.id for item in items), default=0))
        else:
            raise SettingError(f"do: expected one of {', '.join([*ways, 'score', 'undo'])}, got {word!r}")

    def _deleted(self, asked: Mapping[str, Any]) -> list[Item]:
        gone = self._named(asked)
        return [item for item in self.items if item not in gone]

    def _hidden(self, asked: Mapping[str, Any], *, hide: bool) -> list[Item]:
        named = self._named(asked)
        return [replace(item, hidden=hide) if item in named else item for item in self.items]

    def _merged(self, asked: Mapping[str, Any]) -> list[Item]:
        named = self._named(asked)
        if len(named) < 2:
            raise SettingError("ids: expected two or more instances to merge")
        whole = joined(named)
        return [whole if item is named[0] else item for item in self.items if item is named[0] or item not in named]

    def _split(self, asked: Mapping[str, Any]) -> Iterator[Item]:
        named = self._named(asked)
        if len(named) != 1:
            raise SettingError(f"ids: expected one instance to split, got {len(named)}")
        places = self._places(asked)
        if len(places) != 2:
            raise SettingError(f"points: expected two, one in each part, got {len(places)}")
        parts = divided(named[0], places, self.space.spacing, number=self._next)
        for item in self.items:
            yield from parts if item is named[0] else (item,)

    def _added(self, asked: Mapping[str, Any], drawn: Crop | None) -> list[Item]:
        kind = asked.get("class", 1)
        if isinstance(kind, bool) or not isinstance(kind, int) or not 0 < kind <= _MOST_KINDS:
            raise SettingError(f"class: expected a number from 1 to {_MOST_KINDS}, got {kind!r}")
        if drawn is None:
            raise SettingError("drawn: expected the voxels to add")
        window, mask = drawn
        free, others = mask.copy(), []
        for item in self.seen:
            shared = _shared(window, item.crop[0])
            if shared is not None and (free[shared[0]] & item.crop[1][shared[1]]).any():
                free[shared[0]] &= ~item.crop[1][shared[1]]
                others.append(str(item.id))
        if not free.any():
            raise SettingError(f"drawn: every voxel of it is another instance's ({', '.join(others)}) already")
        self._left = int(np.count_nonzero(mask) - np.count_nonzero(free))
        empty = Item(self._next, 1.0, kind, np.zeros(2 * self.space.ndim, dtype=np.float32), drawn)
        return [*self.items, empty.with_mask(window, free)]

    def _named(self, asked: Mapping[str, Any]) -> list[Item]:
        """The instances that are meant, in the order that they are named in.

        Raises:
            SettingError: none, or one that isn't there.
        """
        ids, known = asked.get("ids"), {item.id: item for item in self.items}
        if not isinstance(ids, list) or not ids:
            raise SettingError(f"ids: expected a list of instances, got {ids!r}")
        for one in ids:
            if not isinstance(one, int) or one not in known:
                raise SettingError(f"ids: there is no instance {one!r}")
        return [known[one] for one in dict.fromkeys(ids)]

    def _places(self, asked: Mapping[str, Any]) -> NDArray[np.float64]:
        """The points that are meant, as index coordinates.

        Raises:
            SettingError: no list of places in mm.
        """
        try:
            points = np.asarray(asked.get("points"), dtype=np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.shape[1:] != (3,) or not np.isfinite(points).all():
            raise SettingError("points: expected a list of places of three numbers in mm")
        return np.asarray(self.space.to_index(points), dtype=np.float64)

    def _prediction(self, items: Sequence[Item]) -> InstancePrediction:
        ndim = self.space.ndim
        instances = Instances(
            np.array([item.box for item in items], dtype=np.float32).reshape(-1, 2 * ndim),
            np.array([item.score for item in items], dtype=np.float32),
            np.array([item.kind for item in items], dtype=np.int64),
            [item.crop for item in items],
        )
        return InstancePrediction.from_instances(self.name, self.space, instances)


def _shared(window: Sequence[slice], other: Sequence[slice]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two windows have in common, within each of them; None where that is nothing."""
    ends = [(max(one.start, two.start), min(one.stop, two.stop)) for one, two in zip(window, other, strict=True)]
    if any(low >= high for low, high in ends):
        return None
    first, second = (
        tuple(slice(low - part.start, high - part.start) for (low, high), part in zip(ends, parts, strict=True))
        for parts in (window, other)
    )
    return first, second


def voxel_within(crop: Crop) -> NDArray[np.float64]:
    """Index of the voxel of a mask that is nearest to its centre of mass."""
    window, mask = crop
    voxels = np.argwhere(mask)
    nearest = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
    return np.asarray(nearest.astype(np.float64) + [part.start for part in window])


def joined(items: Sequence[Item]) -> Item:
    """One instance of several: the first one's id, the largest one's class, the best score."""
    low = np.min([[part.start for part in item.crop[0]] for item in items], axis=0)
    high = np.max([[part.stop for part in item.crop[0]] for item in items], axis=0)
    mask = np.zeros(high - low, dtype=bool)
    for item in items:
        window, own = item.crop
        mask[tuple(slice(part.start - a, part.stop - a) for part, a in zip(window, low.tolist(), strict=True))] |= own
    largest = max(items, key=lambda item: item.voxels)
    window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return items[0].with_mask(window, mask, kind=largest.kind, score=max(item.score for item in items))


def divided(item: Item, places: NDArray[np.float64], spacing: Sequence[float], *, number: int) -> tuple[Item, Item]:
    """Two instances of one, met where its border is nearest between two places.

    The watershed of the distance to the border in mm, flooded from the two places (Beucher & Meyer 1993); what neither
    reaches belongs to the nearer one.

    Args:
        places: `(2, ndim)` index coordinates; each stands for the voxel of the instance that is nearest to it.
        spacing: mm per voxel.
        number: id of the second part; the first one keeps its own.

    Raises:
        SettingError: both places are in the same voxel of it.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import watershed

    window, mask = item.crop
    voxels, start, step = np.argwhere(mask), np.array([part.start for part in window]), np.asarray(spacing)
    away = np.stack([(((voxels + start - place) * step) ** 2).sum(axis=1) for place in places])
    seeds = voxels[away.argmin(axis=1)]
    if (seeds[0] == seeds[1]).all():
        raise SettingError("points: expected one in each part of the instance, got twice the same place")
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(seeds.T)] = 1, 2
    inner = (slice(1, -1),) * mask.ndim  # the border of the window is one of the mask, too
    depth = distance_transform_edt(np.pad(mask, 1), sampling=step)[inner]
    parts = watershed(-depth, markers, mask=mask)
    nearer = np.zeros_like(parts)
    nearer[mask] = 1 + away.argmin(axis=0)
    parts = np.where(mask & (parts == 0), nearer, parts)
    return item.with_mask(window, parts == 1), item.with_mask(window, parts == 2, id=number)


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SettingError(f"least: expected a score from 0 to 1, got {value!r}")
    return float(value)

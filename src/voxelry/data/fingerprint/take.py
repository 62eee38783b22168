"""What a data set is made of, without reading it: headers of all cases, windows and labels of some.

Headers, files of points and sizes of files are read of every case. Pixels are read of as many cases, spread evenly, as
a budget of bytes allows, where a compressed file costs what has to be unpacked before the window; labels likewise,
every so many voxels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from voxelry.core.atomic import replacing
from voxelry.core.errors import VoxelryError
from voxelry.core.space import Space
from voxelry.data.cache import stamps
from voxelry.data.doctor.inspect import without_path
from voxelry.data.fingerprint.modality import modality_of
from voxelry.data.fingerprint.record import CaseFacts, Fingerprint
from voxelry.data.label_grid import LabelFile, Reference, open_labels
from voxelry.data.layouts.case import Case, PairCase
from voxelry.data.layouts.points import read_case_landmarks
from voxelry.data.windows import sample_windows, slabs
from voxelry.io import ImageFile, open_image
from voxelry.io.images.image import split_dataset

__all__ = ["take_fingerprint"]

_VERSION = 3  # of the cached record: raise it when the same files give another one
_BUDGET = 1 << 30  # bytes to unpack and read, of images and of labels each
_WINDOW = 1 << 20  # voxels of a sampled window
_WINDOWS = 3  # of an image whose parts can be read by themselves
_SLAB = 32 << 20  # bytes of labels in memory at a time
_LABEL_VOXELS = 1 << 20  # that are looked at, of a case
_OBJECTS = 500  # whose sizes are kept, of a case
_PARTS = 3  # of the middle window along each axis, whose means are kept
_PERCENT = (0.0, 0.5, 25.0, 50.0, 75.0, 99.5, 100.0)


def take_fingerprint(
    cases: Sequence[Case],
    root: Path,
    *,
    need: Sequence[str] = (),
    sampled: bool = True,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fingerprint:
    """The fingerprint of a data set; what can't be read is noted in its case and raises nothing.

    Args:
        cases: from `find_cases` or `find_pairs`.
        root: what they were found in.
        need: what is looked at beside the image, of `landmarks`, `labels` and `masks`.
        sampled: whether pixels and labels are sampled; otherwise headers and points are all.
        cache: a folder that keeps the record in `fingerprints/`, under a name that follows from the names, sizes and
            times of change of all files; None keeps nothing.
        progress: called with the number of cases done and of all, before each and at the end.

    Raises:
        FileError: the cache can't be written.
    """
    note = None if cache is None else _note(cache, cases, need, sampled)
    known = None if note is None else _read_note(note)
    if known is not None:
        return replace(known, root=str(root))
    opened = [_Opened.of(case) for case in cases]
    images = _affordable([one.image_bytes for one in opened]) if sampled else set()
    labels = _affordable([one.label_bytes(need) for one in opened]) if sampled else set()
    facts = []
    for place, one in enumerate(opened):
        if progress is not None:
            progress(place, len(opened))
        facts.append(_facts(one, need, pixels=place in images, labels=place in labels))
    if progress is not None:
        progress(len(opened), len(opened))
    found = Fingerprint(str(root), any(isinstance(case, PairCase) for case in cases), tuple(facts))
    if note is not None:
        with replacing(note) as place_of_note:
            place_of_note.write_text(json.dumps(found.plain()), encoding="utf-8")
    return found


@dataclass(frozen=True)
class _Opened:
    """A case and the header of its image, or why there is none."""

    case: Case
    file: ImageFile | None
    fault: str = ""

    @classmethod
    def of(cls, case: Case) -> _Opened:
        try:
            return cls(case, open_image(case.image, **case.options))
        except VoxelryError as error:
            return cls(case, None, without_path(error))

    @property
    def windows(self) -> list[tuple[slice, ...]]:
        """What is sampled of the image: of a compressed one the middle alone."""
        assert self.file is not None
        count = _WINDOWS if self.file.in_windows else 1
        return sample_windows(self.file.space.shape, count, _WINDOW)

    @property
    def image_bytes(self) -> int:
        """What sampling the image costs."""
        if self.file is None:
            return 0
        voxel = self.file.channels * self.file.dtype.itemsize
        if not self.file.in_windows:
            return voxel * prod(self.file.space.shape) // 2
        return voxel * sum(prod(part.stop - part.start for part in window) for window in self.windows)

    def label_bytes(self, need: Sequence[str]) -> int:
        """What looking at the labels costs."""
        if self.file is None or _label_path(self.case, need) is None:
            return 0
        return 2 * prod(self.file.space.shape)


def _affordable(costs: Sequence[int]) -> set[int]:
    """Places of the cases that are looked at: as many, spread evenly, as the budget pays for; one at least.

    A single case that costs more than all of the budget isn't.
    """
    priced = [place for place, cost in enumerate(costs) if 0 < cost <= _BUDGET]
    if not priced:
        return set()
    mean = sum(costs[place] for place in priced) / len(priced)
    count = max(1, min(len(priced), int(_BUDGET / mean)))
    return {priced[int(step)] for step in np.linspace(0, len(priced) - 1, count)}


def _facts(one: _Opened, need: Sequence[str], *, pixels: bool, labels: bool) -> CaseFacts:
    case, file = one.case, one.file
    base = CaseFacts(case.name, str(case.image), group=case.group, split=case.split, fault=one.fault)
    if file is None:
        return base
    known: dict[str, Any] = {}
    faults = []
    for wanted, look in (
        (pixels, partial(_sampled, one)),
        ("landmarks" in need and case.landmarks, partial(_points, case, file)),
        (labels, partial(_labels, case, need)),
        (isinstance(case, PairCase), partial(_conditions, case)),
    ):
        try:
            known |= look() if wanted else {}
        except VoxelryError as error:
            faults.append(str(error))
    return replace(
        base,
        fault=next(iter(faults), ""),
        shape=file.space.shape,
        affine=tuple(tuple(float(value) for value in row) for row in file.space.affine),
        placed=file.has_orientation or any(step != 1.0 for step in file.space.spacing),
        channels=file.channels,
        dtype=str(file.dtype),
        format=file.format,
        modality=modality_of(case, file, known.get("quantiles", ())),
        **known,
    )


def _conditions(case: Case) -> dict[str, Any]:
    given = case.images if isinstance(case, PairCase) else ()
    return {"conditions": tuple(0 if path is None else open_image(path, **case.options).channels for path in given)}


def _sampled(one: _Opened) -> dict[str, Any]:
    """Quantiles and digest of the sampled windows, and how the middle one looks from afar."""
    assert one.file is not None
    state = hashlib.blake2b(digest_size=20)
    values, windows = [], one.windows
    coarse: tuple[float, ...] = ()
    for window in windows:
        pixels = one.file.read(window)
        alike = pixels.dtype if np.iscomplexobj(pixels) else np.float32  # a copy of another type is a copy
        state.update(np.ascontiguousarray(pixels, alike).data)
        values.append(pixels[np.isfinite(pixels)])
        if window == windows[len(windows) // 2]:
            coarse = _coarse(pixels, one.file.space)
    flat = np.concatenate(values)
    quantiles = np.percentile(flat, _PERCENT).tolist() if flat.size else []
    return {"quantiles": tuple(map(float, quantiles)), "coarse": coarse, "digest": state.hexdigest()}


def _coarse(pixels: NDArray[Any], space: Space) -> tuple[float, ...]:
    """Means over parts of pixels `(C, *S)`, see `CaseFacts.coarse`; empty where an axis is too short or none finite."""
    if min(pixels.shape[1:]) < _PARTS or np.iscomplexobj(pixels):
        return ()
    means = np.asarray(pixels[0], np.float64)
    for axis in range(means.ndim):
        parts = np.array_split(means, _PARTS, axis=axis)
        means = np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis=axis)
    closest = space.closest_axes()
    means = np.flip(means, tuple(axis for axis, (_, sign) in enumerate(closest) if sign < 0))
    means = means.transpose(np.argsort([-world for world, _ in closest]))
    return tuple(map(float, means.ravel())) if np.isfinite(means).all() else ()


def _points(case: Case, file: ImageFile) -> dict[str, Any]:
    index, names = read_case_landmarks(case, file.space)
    return {"landmarks": tuple(names), "absent": int((~np.isfinite(index).all(axis=1)).sum())}


def _label_path(case: Case, need: Sequence[str]) -> Path | None:
    """The file whose objects are looked at: of instances where these are needed, else of labels."""
    if "masks" in need and case.instances is not None:
        return case.instances
    return case.labels if "labels" in need else None


def _labels(case: Case, need: Sequence[str]) -> dict[str, Any]:
    """Shares of the label values, and the extents of the objects."""
    path = _label_path(case, need)
    if path is None:
        return {}
    reference = Reference.of_file(case.image, case.options)
    ids, steps = _thinned(open_labels(path, reference))
    found: dict[str, Any] = {"objects": _extents(ids, steps)}
    if case.labels is not None and "labels" in need:
        values = ids if path == case.labels else _thinned(open_labels(case.labels, reference))[0]
        present, counts = np.unique(values, return_counts=True)
        found["classes"] = dict(zip(present.tolist(), (counts / values.size).tolist(), strict=True))
    return found


def _thinned(labels: LabelFile) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Every so many voxels of labels, the same number along each axis but for short ones, and these numbers."""
    shape = labels.placement.shape
    step = max(1, ceil((prod(shape) / _LABEL_VOXELS) ** (1 / len(shape))))
    steps = tuple(min(step, max(1, size // 32)) for size in shape)
    parts = []
    for window in slabs(shape, labels.file.dtype.itemsize, _SLAB):
        first = -(-window[0].start // steps[0]) * steps[0]
        if first < window[0].stop:
            parts.append(labels.read((slice(first, window[0].stop), *window[1:]), steps))
    return np.concatenate(parts), steps


def _extents(ids: NDArray[Any], steps: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Extents in voxels of the objects of an array that was thinned by `steps`, spread evenly over their ids."""
    known, places = np.unique(ids, return_inverse=True)
    boxes = find_objects(places.reshape(ids.shape).astype(np.int32) + int(known[0] > 0))
    found = [box for box in boxes if box is not None]
    chosen = np.linspace(0, len(found) - 1, min(len(found), _OBJECTS)).astype(int) if found else ()
    return tuple(
        tuple((part.stop - part.start) * step for part, step in zip(found[place], steps, strict=True))
        for place in chosen
    )


def _note(cache: Path, cases: Sequence[Case], need: Sequence[str], sampled: bool) -> Path | None:
    """Where the record of these files is kept; None where one of them isn't there."""
    state = hashlib.sha256(repr((_VERSION, sorted(need), sampled)).encode())
    try:
        for case in cases:
            told = sorted((*case.options.items(), *case.point_options.items()), key=repr)
            state.update(repr((case.name, case.group, case.split, case.modality, told)).encode())
            for use, paths in sorted(case.files.items()):
                for path in paths:
                    state.update(repr((use, str(path.absolute()), stamps(split_dataset(path)[0]))).encode())
    except VoxelryError:
        return None
    return cache / "fingerprints" / f"{state.hexdigest()}.json"


def _read_note(note: Path) -> Fingerprint | None:
    try:
        return Fingerprint.of(json.loads(note.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there yet, or damaged: it is only a shortcut

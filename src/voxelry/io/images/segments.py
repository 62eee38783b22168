"""Segments with names, as Slicer and DICOM keep them, brought to one number per voxel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import FileError
from voxelry.io.advice import way_to_say

__all__ = ["Segment", "chosen_segments", "merged"]


@dataclass(frozen=True)
class Segment:
    """One segment of a file.

    Attributes:
        name: what the file calls it.
        number: what its voxels become.
        place: which segment of the file it is, from 0.
    """

    name: str
    number: int
    place: int


def chosen_segments(path: Path, names: Sequence[str], values: Sequence[int], wanted: str | None) -> list[Segment]:
    """The segments that are read, and the number of each.

    Args:
        path: for messages.
        names, values: of all segments of the file, in its order.
        wanted: names between commas, which get the numbers 1, 2, ... in that order whatever the file's own values
            are; one that the file lacks is absent. None: all, with the file's own values.

    Raises:
        FileError: none of those wanted, or two segments of one value.
    """
    if wanted is None:
        if len(set(values)) < len(values):
            twice = next(value for value in values if list(values).count(value) > 1)
            alike = [name for name, value in zip(names, values, strict=True) if value == twice]
            raise FileError(path, f"its segments {', '.join(alike)} all have the label value {twice}", _way_out(names))
        return [Segment(name, value, place) for place, (name, value) in enumerate(zip(names, values, strict=True))]
    listed = [wanted] if wanted in names else [name.strip() for name in wanted.split(",")]
    found = [Segment(name, number, names.index(name)) for number, name in enumerate(listed, 1) if name in names]
    if not found:
        raise FileError(path, f"has no segment {wanted}", f"it has {', '.join(names)}")
    return found


def merged(
    path: Path, parts: Iterable[tuple[Segment, tuple[slice, ...], NDArray[np.bool_]]], labels: NDArray[np.integer]
) -> None:
    """Write segments into `labels (*spatial)`, each a mask in a window of it.

    Raises:
        FileError: a voxel of two segments.
    """
    names: dict[int, str] = {}
    for segment, window, mask in parts:
        names[segment.number] = segment.name
        here = labels[window]
        other = np.unique(here[mask & (here != 0) & (here != segment.number)])
        if len(other):
            both = f"{names[int(other[0])]} and {segment.name}"
            raise FileError(path, f"its segments {both} overlap", _way_out([segment.name]))
        here[mask] = segment.number


def _way_out(names: Sequence[str]) -> str:
    return f"choose some by name, which become 1, 2, ... in that order: {way_to_say(label_dataset=list(names))}"

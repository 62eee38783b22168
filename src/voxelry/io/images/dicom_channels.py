"""Which of several DICOM frames in one place is which channel: an echo, a moment, a kind of image.

InstanceNumber is the order in which frames are meant to be seen, but it may run the other way in a second pass, or
begin anew. Where it gives other channels from plane to plane, what the headers say of each frame decides: a value that
parts the frames of every plane in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom

from voxelry.core.errors import FileError
from voxelry.io.images.dicom_values import functional

__all__ = ["channel_order"]

_TELLING = (  # functional group (PS3.3, C.7.6.16 and the groups of each object) and attribute
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MREchoSequence", "EchoTime"),
    ("MREchoSequence", "EchoNumbers"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "TemporalPositionIdentifier"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("MRImageFrameTypeSequence", "ImageType"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRModifierSequence", "InversionTime"),
    ("CTXRayDetailsSequence", "KVP"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("CardiacSynchronizationSequence", "TriggerTime"),
    ("FrameContentSequence", "FrameReferenceTime"),
    ("FrameContentSequence", "AcquisitionNumber"),
)
_INDEX = "DimensionIndexValues"

Place = tuple[pydicom.Dataset, int]
"""A frame: the header of its file and its number there."""


def channel_order(path: Path, rows: Sequence[Sequence[Place]]) -> list[list[int]]:
    """For each plane the order of its frames, the same channels in all planes.

    Args:
        path: named in errors.
        rows: the frames of each plane in the order of instance numbers, equally many in each.

    Raises:
        FileError: two files in one place that nothing tells apart.
    """
    found = [[_marks(header, number) for header, number in row] for row in rows]
    names = [name for name in found[0][0] if _parts([[mark.get(name) for mark in row] for row in found])]
    marks = [[tuple(mark[name] for name in names) for mark in row] for row in found]
    rank = {mark: place for place, mark in enumerate(dict.fromkeys(marks[0]))}
    alike = all(row == marks[0] for row in marks)
    for row, own in zip(rows, marks, strict=True):
        _check_ties(path, row, own)
    return [sorted(range(len(row)), key=lambda place: 0 if alike else rank[row[place]]) for row in marks]


def _marks(header: pydicom.Dataset, number: int) -> dict[str, Any]:
    """What a header says of a frame, by attribute."""
    marks = {key: _plain(functional(header, group, key, number)) for group, key in _TELLING}
    index = functional(header, "FrameContentSequence", _INDEX, number)
    if index is not None:
        values = index if isinstance(index, Sequence | pydicom.multival.MultiValue) else [index]
        marks |= {f"{_INDEX} {place}": int(value) for place, value in enumerate(values)}
    return marks


def _plain(value: Any) -> Any:
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, Sequence | pydicom.multival.MultiValue):
        return tuple(str(part) for part in value)
    return None if value is None else float(value)


def _parts(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether the values differ within each plane, and are the same in all of them."""
    first = Counter(columns[0])
    return len(first) > 1 and None not in first and all(Counter(column) == first for column in columns)


def _check_ties(path: Path, row: Sequence[Place], marks: Sequence[tuple[Any, ...]]) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for (header, number), mark in zip(row, marks, strict=True):
        instance = int(header.get("InstanceNumber") or 0)
        other = seen.setdefault((mark, instance, number), str(header.filename))
        if other != str(header.filename):
            raise FileError(
                path,
                f"{Path(other).name} and {Path(header.filename).name} lie in one place and have the same"
                f" InstanceNumber ({instance}); nothing tells which channel each of them is",
                "put the images of each channel into a folder of their own",
            )

"""Slicer's segmentations (`.seg.nrrd`): NRRD whose header names segments, which may lie in layers.

The fields `SegmentN_Name`, `SegmentN_LabelValue` and `SegmentN_Layer` say what is what; layers are a fourth axis. The
grid may be a part of the image's: what it doesn't cover is background.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError
from voxelry.io.images import nrrd
from voxelry.io.images.record import ImageFile
from voxelry.io.images.segments import Segment, chosen_segments, merged

__all__ = ["open_file"]

_LONGEST_HEADER = 1 << 20


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a segmentation; `dataset` names segments, see `segments.chosen_segments`.

    Raises:
        FileError: as of a NRRD; no segments, or segments that can't be one number per voxel.
    """
    file = nrrd.open_file(path, dataset=None, channel_axis=channel_axis, ndim=ndim)
    fields = _pairs(path)
    names: list[str] = []
    values: list[int] = []
    layers: list[int] = []
    while any(key.startswith(f"Segment{len(names)}_") for key in fields):
        prefix = f"Segment{len(names)}_"
        layers.append(int(fields.get(f"{prefix}Layer", len(names) if file.channels > 1 else 0)))
        values.append(int(fields.get(f"{prefix}LabelValue", 1)))
        names.append(fields.get(f"{prefix}Name", f"Segment{len(names)}"))
    if not names:
        raise FileError(path, "names no segments", "if it is a plain label map, call it .nrrd")
    if not all(0 <= layer < file.channels for layer in layers) or file.dtype.kind not in "ui":
        raise FileError(path, f"expected segments in {file.channels} layers of integers, got layers {layers}")
    segments = chosen_segments(path, names, values, dataset)
    stored = [(segment, layers[segment.place], values[segment.place]) for segment in segments]
    return dataclasses.replace(
        file,
        channels=1,
        dtype=np.dtype(np.int32),
        format="NRRD segmentation",
        order=None,
        loader=partial(_load, path, file, stored),
        metadata={
            **file.metadata,
            "segments": {segment.name: segment.number for segment in segments},
            "segment_names": names,
        },
    )


def _pairs(path: Path) -> dict[str, str]:
    """The `key:=value` lines of the header."""
    found = {}
    with path.open("rb") as stream:
        while (line := stream.readline(_LONGEST_HEADER).strip()) and stream.tell() < _LONGEST_HEADER:
            key, sign, value = line.decode("utf-8", "replace").partition(":=")
            if sign:
                found[key.strip()] = value.strip()
    return found


def _load(path: Path, file: ImageFile, stored: list[tuple[Segment, int, int]], window: tuple[slice, ...]) -> np.ndarray:
    layers = file.loader(window)
    labels = np.zeros(layers.shape[1:], np.int32)
    everywhere = (slice(None),) * labels.ndim
    merged(path, ((segment, everywhere, layers[layer] == value) for segment, layer, value in stored), labels)
    return labels[None]

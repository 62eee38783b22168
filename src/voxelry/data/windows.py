"""Parts of an image that are read one at a time, so that a large one is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from voxelry.data.patches import window_size

__all__ = ["sample_windows", "slabs"]

Window = tuple[slice, ...]


def slabs(shape: Sequence[int], voxel_bytes: int, most: int) -> Iterator[Window]:
    """Windows along the first axis that make up an image, each of at most `most` bytes or one plane."""
    planes = max(1, most // max(1, voxel_bytes * prod(shape[1:])))
    for start in range(0, shape[0], planes):
        yield (slice(start, min(start + planes, shape[0])), *(slice(0, size) for size in shape[1:]))


def sample_windows(shape: Sequence[int], count: int, most: int) -> list[Window]:
    """Up to `count` windows of at most `most` voxels, evenly along the first axis; a smaller image is one window.

    A window holds whole planes where one has fewer voxels than `most`, so that it shows what lies around an object,
    too; else the middle of one plane.
    """
    if prod(shape) <= most:
        return [tuple(slice(0, size) for size in shape)]
    plane = window_size(shape[1:], most)
    depth = max(1, min(most // prod(plane), shape[0] // count or 1))
    across = [slice((size - part) // 2, (size + part) // 2) for size, part in zip(shape[1:], plane, strict=True)]
    starts = [int((shape[0] - depth) * (number + 1) / (count + 1)) for number in range(count)]
    return [(slice(start, start + depth), *across) for start in dict.fromkeys(starts)]

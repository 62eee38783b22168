"""Pictures whose file says that they are to be shown turned: the tag Orientation of Exif and TIFF (number 274).

Exif 2.32, 4.6.4.A and TIFF 6.0, section 8 name what the stored first row and first column are in the picture as it is
shown. Viewers, browsers and tools for annotation show it so, and so it is read: image, labels and points in
pixels all lie in the shown picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.images.record import ImageFile, Loader

__all__ = ["ORIENTATION_TAG", "as_shown"]

ORIENTATION_TAG = 274
_TURNS = {  # the stored axes that rows and columns of the shown picture are, and whether they run against them
    1: ((0, 1), (False, False)),
    2: ((0, 1), (False, True)),
    3: ((0, 1), (True, True)),
    4: ((0, 1), (True, False)),
    5: ((1, 0), (False, False)),
    6: ((1, 0), (False, True)),
    7: ((1, 0), (True, True)),
    8: ((1, 0), (True, False)),
}


def as_shown(image: ImageFile, orientation: Any) -> ImageFile:
    """The picture as it is shown, `(C, row, column)`; numbers that the standards don't know say nothing.

    Args:
        image: as it is stored.
        orientation: the tag's value, None where there is none.

    Raises:
        FileError: a volume, whose planes can't be shown so.
    """
    axes, flips = _TURNS.get(orientation if isinstance(orientation, int) else 1, _TURNS[1])
    if axes == (0, 1) and not any(flips):
        return image
    if image.space.ndim != 2:
        raise FileError(
            image.path,
            f"its planes are to be shown turned (its tag Orientation is {int(orientation)}), as only pictures are",
            "save it with its voxels as they are meant, and without the tag",
        )
    space = image.space.reorder(axes, flips)
    if not image.has_orientation:  # the picture as it is shown has rows along y and columns along x, as any other
        space = Space.from_spacing(space.shape, space.spacing)
    return dataclasses.replace(
        image,
        space=space,
        order=None,
        loader=partial(_load, image.loader, image.space.shape, axes, flips),
        indices=None if image.indices is None else as_shown(image.indices, orientation),
    )


def _load(
    load: Loader, stored: tuple[int, ...], axes: Sequence[int], flips: Sequence[bool], window: tuple[slice, ...]
) -> np.ndarray:
    """A window of the shown picture, of which the pixels are `stored` in this shape."""
    parts = [slice(0)] * 2
    for axis, part, against in zip(axes, window, flips, strict=True):
        size = stored[axis]
        parts[axis] = slice(size - part.stop, size - part.start) if against else part
    turned = load(tuple(parts)).transpose(0, *(1 + axis for axis in axes))
    return np.flip(turned, tuple(1 + axis for axis, against in enumerate(flips) if against))

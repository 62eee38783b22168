"""Images as a browser can show them: NIfTI in numbers that it knows, thinned where there are too many.

An image that doesn't say how it lies is turned by half a turn about x, `TURN`, so that its rows run down and its planes
away, as programs for pictures show it; the page turns places back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path

import numpy as np

from voxelry.core.orientation import orientation_steps
from voxelry.core.space import Space
from voxelry.io import write_image
from voxelry.io.images.record import ImageFile

__all__ = ["FIRST_VOXELS", "MOST_VOXELS", "TURN", "put", "shown", "thinned", "thinning", "thumbnail"]

TURN = np.diag([1.0, -1.0, -1.0, 1.0])

MOST_VOXELS = 1 << 26
FIRST_VOXELS = 1 << 20  # a second of a browser that draws without a graphics card
_LONGEST = 2048  # voxels along an axis, which is all that the textures of many graphics cards hold
_SLAB = 1 << 27  # voxels that are read at once
_TYPES = ("u1", "i2", "u2", "i4", "f4")  # that browsers' viewers know


def thinning(image: ImageFile, most: int = MOST_VOXELS) -> tuple[int, ...]:
    """Every how many voxels of each axis are shown, so that there are at most `most` in all, and 2048 along an axis."""
    return _steps(image.space, image.channels, most)


def thinned(space: Space, steps: Sequence[int]) -> Space:
    """The grid of every so many voxels of each axis, from the first on."""
    affine = space.affine.copy()
    affine[:, : space.ndim] *= steps
    return Space(tuple(-(-size // step) for size, step in zip(space.shape, steps, strict=True)), affine)


def _steps(space: Space, channels: int, most: int) -> tuple[int, ...]:
    shape = np.array(space.shape)
    steps = -(-shape // _LONGEST)
    while channels * prod((-(-shape // steps)).tolist()) > most:
        finest = np.argmin(np.where(shape > steps, steps * np.array(space.spacing), np.inf))
        steps[finest] += 1
    return tuple(steps.tolist())


def shown(image: ImageFile, path: Path, most: int = MOST_VOXELS, *, oriented: bool = True) -> Path:
    """Write an image for a browser, at the places in the world where its voxels are.

    Args:
        image: of any format.
        path: the file to write, `.nii`.
        most: voxels to show; of larger images every few along each axis, the finest first.
        oriented: False turns it.

    Raises:
        FileError: the image can't be read.
    """
    steps = thinning(image, most)
    return _written(_strided(image, steps), image.space if oriented else _turned(image.space), path, steps)


def put(array: np.ndarray, space: Space, path: Path, most: int = MOST_VOXELS, *, oriented: bool = True) -> Path:
    """As `shown`, an array `(C, *space.shape)`.

    Raises:
        FileError: the disk refuses.
    """
    steps = _steps(space, len(array), most)
    return _written(array[_every(steps)], space if oriented else _turned(space), path, steps)


def _turned(space: Space) -> Space:
    return Space(space.shape, TURN @ space.affine)


def thumbnail(image: ImageFile, path: Path, most: int = 64) -> Path:
    """Write the middle slice of an image as a small PNG, anterior up and the patient's left on the left.

    Args:
        most: pixels along its longer side, about.

    Raises:
        FileError: the image can't be read.
    """
    space = image.space
    # rows go down to inferior or posterior, columns right to posterior or right, whichever axes there are
    oriented = image.has_orientation
    axes, flips = orientation_steps(space, "IPR") if oriented else (tuple(range(space.ndim)), (False,) * space.ndim)
    window = [
        slice(size // 2, size // 2 + 1) if axis in axes[:-2] else slice(None) for axis, size in enumerate(space.shape)
    ]
    plane = image.read(window)[0].transpose(axes)
    plane = plane[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].reshape(plane.shape[-2:])
    steps = np.array([space.spacing[axis] for axis in axes[-2:]])
    pixel = max(steps * plane.shape) / most
    rows, columns = (
        np.minimum(np.arange(max(1, round(size * step / pixel))) * pixel / step, size - 1).astype(int)
        for size, step in zip(plane.shape, steps, strict=True)
    )
    small = plane[np.ix_(rows, columns)].astype(np.float64)
    small[~np.isfinite(small)] = 0
    low, high = np.percentile(small, (1, 99))
    grey = np.clip((small - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    return write_image(path, np.rint(255 * grey).astype(np.uint8)[None], Space.from_spacing(grey.shape))


def _written(array: np.ndarray, space: Space, path: Path, steps: Sequence[int]) -> Path:
    return write_image(path, _known(array), thinned(space, steps))


def _every(steps: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(None, None, step) for step in steps))


def _strided(image: ImageFile, steps: tuple[int, ...]) -> np.ndarray:
    """Every so many voxels, read slab by slab."""
    first, *rest = image.space.shape
    thick = max(1, _SLAB // (image.channels * prod(rest)) // steps[0]) * steps[0]
    every = _every(steps)
    slabs = [
        image.read([slice(start, min(start + thick, first)), *(slice(0, size) for size in rest)])[every]
        for start in range(0, ceil(first / thick) * thick, thick)
    ]
    return slabs[0] if len(slabs) == 1 else np.concatenate(slabs, axis=1)


def _known(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type that viewers know: unchanged, the next larger of whole numbers, or float32."""
    for name in _TYPES:
        if np.can_cast(array.dtype, name, "safe"):
            return array.astype(name, copy=False)
    if (
        array.dtype.kind in "iu"
        and array.size
        and np.iinfo("i4").min <= array.min()
        and array.max() <= np.iinfo("i4").max
    ):
        return array.astype("i4")
    return array.astype("f4")

"""PNG, JPEG and BMP: planes without a place in the world.

Pixels are 1 mm apart unless the user says otherwise: the dots per inch of such files are a printing hint.
Palettes and CMYK become RGB; one-bit images become 0 and 1. Camera rotation tags are left alone, since
annotations are made on stored pixels as often as on shown ones.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image as Pillow

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.io.axes import AxisOrder, order_axes
from voxelry.data.io.guard import check_numeric, check_stored
from voxelry.data.io.record import ImageFile

__all__ = ["open_file", "write_file"]

_DECODED = {"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "LA", "1": "L"}
_CHANNELS = {"L": 1, "I": 1, "I;16": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a PNG, JPEG or BMP file; see `open_image` for the keywords.

    Raises:
        FileError: not such a file, or a size that its bytes can't hold.
    """
    with Pillow.open(path, formats=("PNG", "JPEG", "BMP")) as image:
        mode = _DECODED.get(image.mode, image.mode)
        width, height = image.size
        kind = image.format or ""
    if mode not in _CHANNELS:
        raise FileError(path, f"unknown colour model {mode}")
    deep = kind == "PNG" and _png_depth(path) == 16
    dtype = check_numeric(path, np.dtype(np.uint16 if deep else np.uint8))
    channels = _CHANNELS[mode]
    check_stored(path, (height, width, channels), dtype.itemsize, path.stat().st_size, compressed=True)
    order = order_axes(path, (height, width, channels), "yxs", ndim=ndim, channel_axis=channel_axis)
    return ImageFile(
        path=path,
        space=order.plain_space({}),
        channels=order.channels,
        dtype=dtype,
        format=kind,
        loader=partial(_load, path, order, None if deep else mode),
    )


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """PNG of one to four channels (grey, grey and alpha, RGB, RGBA), uint8 or uint16; the space is lost.

    Raises:
        FileError: another type, rank or number of channels.
    """
    if space.ndim != 2 or array.dtype not in (np.uint8, np.uint16) or len(array) > 4:
        raise FileError(
            path.name, f"PNG holds 1 to 4 channels of uint8 or uint16 planes, not {array.dtype} of shape {array.shape}"
        )
    pixels = np.moveaxis(array, 0, -1)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels[..., 0] if len(array) == 1 else pixels)))


def _load(path: Path, order: AxisOrder, mode: str | None, window: tuple[slice, ...]) -> np.ndarray:
    if mode is None:  # Pillow cuts 16-bit colours to 8 bits
        array = imagecodecs.png_decode(path.read_bytes())
    else:
        with Pillow.open(path, formats=("PNG", "JPEG", "BMP")) as image:
            one_bit = image.mode == "1"
            array = np.asarray(image if image.mode == mode else image.convert(mode))
        array = array // 255 if one_bit else array
    return order.arrange(array.reshape(order.shape)[order.index(window)])


def _png_depth(path: Path) -> int:
    """Bits per sample, byte 24 of the file (PNG specification, IHDR)."""
    with path.open("rb") as file:
        return file.read(25)[24]

"""PNG, JPEG and BMP: planes without a place in the world.

Pixels are 1 mm apart unless the user says otherwise: the dots per inch of such files are a printing hint.
Palettes and CMYK become RGB, and of a palette the stored numbers are there, too (`ImageFile.indices`); greys of 1, 2
and 4 bits keep their stored values (0 and 1, to 3, to 15). A picture that a camera marked as turned is read as it is
shown (`displayed`).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image as Pillow

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.guard import check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, order_axes
from voxelry.io.images.displayed import ORIENTATION_TAG, as_shown
from voxelry.io.images.record import ImageFile

__all__ = ["open_file", "write_file"]

_DECODED = {"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "LA", "1": "L"}
_CHANNELS = {"L": 1, "I": 1, "I;16": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4}


_PNG_CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}  # by colour type


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a PNG, JPEG or BMP file; see `open_image` for the keywords.

    Raises:
        FileError: not such a file, an animation, or a size that its bytes can't hold.
    """
    with Pillow.open(path, formats=("PNG", "JPEG", "BMP")) as image:
        stored = image.mode
        mode = _DECODED.get(stored, stored)
        width, height = image.size
        kind = image.format or ""
        frames = int(getattr(image, "n_frames", 1)) if kind == "PNG" else 1
        orientation = _orientation(path, image)
    if frames > 1:
        raise FileError(path, f"is an animation of {frames} frames", "save them as a TIFF, or one PNG each")
    if mode not in _CHANNELS:
        raise FileError(path, f"unknown colour model {mode}")
    depth, colour = _png_samples(path) if kind == "PNG" else (8, 0)
    deep = depth == 16
    dtype = check_numeric(path, np.dtype(np.uint16 if deep else np.uint8))
    channels = _PNG_CHANNELS[colour] if deep else _CHANNELS[mode]  # Pillow takes grey and alpha of 16 bits for RGBA
    check_stored(path, (height, width, channels), dtype.itemsize, path.stat().st_size, compressed=True)
    order = order_axes(path, (height, width, channels), "yxs", ndim=ndim, channel_axis=channel_axis)
    picture = ImageFile(
        path=path,
        space=order.plain_space({}),
        channels=order.channels,
        dtype=dtype,
        format=kind,
        loader=partial(_load, path, order, None if deep else mode),
        indices=_indices(path, (height, width), kind) if stored == "P" else None,
    )
    return as_shown(picture, orientation)


def _indices(path: Path, shape: tuple[int, int], format: str) -> ImageFile:
    """The places in the palette, which are classes where the picture is a map of labels."""
    order = order_axes(path, (*shape, 1), "yxs", ndim=2, channel_axis=None)
    return ImageFile(path, order.plain_space({}), 1, np.dtype(np.uint8), format, partial(_load, path, order, "P"))


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """PNG of one to four channels (grey, grey and alpha, RGB, RGBA), uint8 or uint16; the space is lost.

    Raises:
        FileError: another type, rank or number of channels.
    """
    if space.ndim != 2 or array.dtype not in (np.uint8, np.uint16) or len(array) > 4:
        raise FileError(
            path.name, f"PNG holds 1 to 4 channels of uint8 or uint16 planes, not {array.dtype} of shape {array.shape}"
        )
    path.write_bytes(_png(np.moveaxis(array, 0, -1)))


def _png(pixels: np.ndarray) -> bytes:
    """A PNG file of `(rows, columns, channels)` (PNG specification, third edition, sections 5 and 11).

    Encoders that guess what the axes of an array mean take a single row of pixels for something else.
    """
    rows, columns, channels = pixels.shape
    samples = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">")).reshape(rows, -1)
    lines = np.zeros((rows, 1 + samples.nbytes // rows), dtype=np.uint8)  # each row begins with its filter, 0 for none
    lines[:, 1:] = samples.view(np.uint8).reshape(rows, -1)
    colour = {count: kind for kind, count in _PNG_CHANNELS.items()}[channels]
    header = struct.pack(">IIBBBBB", columns, rows, 8 * pixels.dtype.itemsize, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _load(path: Path, order: AxisOrder, mode: str | None, window: tuple[slice, ...]) -> np.ndarray:
    if mode is None:  # Pillow cuts 16-bit colours to 8 bits
        array = imagecodecs.png_decode(path.read_bytes())
    else:
        with Pillow.open(path, formats=("PNG", "JPEG", "BMP")) as image:
            depth = _grey_bits(path, image)
            array = np.asarray(image if image.mode == mode else image.convert(mode))
        array = array // (255 // (2**depth - 1))  # Pillow spreads few greys over 0 to 255
    return order.arrange(array.reshape(order.shape)[order.index(window)])


def _orientation(path: Path, image: Pillow.Image) -> object:
    """The tag Orientation of the picture's Exif block; None without one, or where it is broken, as for viewers."""
    with suppress(SyntaxError, ValueError, KeyError, struct.error), warnings.catch_warnings(action="ignore"):
        if image.format == "PNG" and "exif" not in image.info:
            image.info["exif"] = _exif_of_png(path)
        return Pillow.Image.getexif(image).get(ORIENTATION_TAG)  # that of PNG decodes the pixels first
    return None


def _exif_of_png(path: Path) -> bytes:
    """The chunk eXIf, which may also stand behind the pixels (PNG specification, third edition, 11.3.4.5)."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"eXIf":
                return b"Exif\0\0" + file.read(length)
            file.seek(length + 4, 1)
    return b""


def _grey_bits(path: Path, image: Pillow.Image) -> int:
    """Bits of a stored grey value; 8 for all else."""
    if image.mode == "1":
        return 1
    depth, colour = _png_samples(path) if image.format == "PNG" else (8, 0)
    return depth if colour == 0 else 8


def _png_samples(path: Path) -> tuple[int, int]:
    """Bits per sample and colour type, bytes 24 and 25 of the file (PNG specification, IHDR)."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24], header[25]

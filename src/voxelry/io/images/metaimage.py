"""MetaImage: a text header (`.mhd`, or `.mha` with the pixels in the same file) and raw or deflated pixels.

Its definition is at itk.org/Wiki/MetaIO/Documentation. Its world is LPS, also where a file gives no directions; x and
y change sign here. Sizes count from the fastest axis, so the stored array is plane, row, column. `TransformMatrix`
holds the direction of one axis after the other. Lengths are millimetres unless `DistanceUnits` says otherwise.

Whatever is in a file's name is taken as it stands where such a file is there, `%` included; only else is it a pattern.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.guard import check_beside, check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, order_axes
from voxelry.io.images.nifti import volume_affine
from voxelry.io.images.record import ImageFile
from voxelry.io.units import Lengths

__all__ = ["open_file", "write_file"]

_LPS = np.diag([-1.0, -1.0, 1.0])
_LONGEST_HEADER = 1 << 16
_LONGEST_LIST = 1 << 22
_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_PATTERN = re.compile(r"(.*%0?\d*d.*?)\s+(\d+)\s+(\d+)(?:\s+(\d+))?")
_IDENTITY = ("LPS", "RAI", "???")  # AnatomicalOrientation of a file without directions: to, from, not told


@dataclass(frozen=True)
class _Pixels:
    """Where the stored numbers are: `files` one after the other along the slowest axes, each from byte `start` on.

    `start` of -1 means the end of the file. `size` is that of the compressed pixels, 0 where not told.
    """

    files: tuple[Path, ...]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    compressed: bool
    size: int
    text: bool
    slope: float
    offset: float

    @property
    def in_windows(self) -> bool:
        """Whether some of the numbers can be read without the others."""
        return len(self.files) == 1 and not (self.compressed or self.text)


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a MetaImage file; see `open_image` for the keywords.

    Raises:
        FileError: a header that lacks or contradicts something, missing or short data files, directions that can't be.
    """
    fields, end = _header(path)
    pixels = _pixels(path, fields, end)
    rank = len(pixels.shape) - 1
    order = order_axes(path, pixels.shape, "c" * (rank - 3) + "zyx"[-rank:] + "s", ndim=ndim, channel_axis=channel_axis)
    lengths = Lengths(path)
    steps, origin = _geometry(path, fields, rank, lengths)
    scaled = (pixels.slope, pixels.offset) != (1.0, 0.0)
    return ImageFile(
        path=path,
        space=order.space({rank - 1 - axis: _LPS @ step for axis, step in enumerate(steps)}, _LPS @ origin),
        channels=order.channels,
        dtype=np.dtype(np.float32) if scaled else check_numeric(path, pixels.dtype),
        format="MetaImage",
        loader=partial(_load, pixels, order),
        has_orientation=_field(fields, "TransformMatrix", "Rotation", "Orientation") is not None,
        metadata=dict(fields.values()),
        spacing_fault=lengths.fault,
        in_windows=pixels.in_windows,
    )


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """MetaImage, deflated where header and pixels share a file; a plane becomes one slice.

    Pixels of a `.mhd` are in a `.raw` of the same name, or in the `.mhd` itself if other programs would take that
    name for a pattern or a keyword.
    """
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    affine = _LPS @ volume_affine(space)[:3]
    data = array.reshape(len(array), *(1,) * (3 - space.ndim), *space.shape)
    stored = np.ascontiguousarray(np.moveaxis(data, 0, -1)).astype(array.dtype.newbyteorder("<"), copy=False)
    partner = path.with_name(path.name[: -len(path.suffix)] + ".raw")
    alone = path.suffix.lower() == ".mha" or not _is_plain(partner.name)
    content = zlib.compress(stored.tobytes(), 2) if path.suffix.lower() == ".mha" else stored.tobytes()
    spacing = np.linalg.norm(affine[:, 2::-1], axis=0)
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": path.suffix.lower() == ".mha",
        **({"CompressedDataSize": len(content)} if path.suffix.lower() == ".mha" else {}),
        "TransformMatrix": _numbers((affine[:, 2::-1] / spacing).T.ravel()),
        "Offset": _numbers(affine[:, 3]),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(str(size) for size in reversed(data.shape[1:])),
        **({"ElementNumberOfChannels": len(array)} if len(array) > 1 else {}),
        "ElementType": "MET_" + next(name for name, code in _TYPES.items() if np.dtype(code) == array.dtype),
        "ElementDataFile": "LOCAL" if alone else partner.name,
    }
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode("utf-8")
    if not alone:
        partner.write_bytes(content)
    path.write_bytes(header + (content if alone else b""))


def _is_plain(name: str) -> bool:
    """Whether every reader takes a name of a data file as it stands."""
    return "%" not in name and name == name.strip() and not name.upper().startswith(("LIST", "LOCAL"))


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)


def _load(pixels: _Pixels, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    index = order.index(window)
    if pixels.in_windows:
        part = np.array(
            np.memmap(pixels.files[0], pixels.dtype, "r", _start(pixels, pixels.files[0]), pixels.shape)[index]
        )
    else:
        each = prod(pixels.shape) // len(pixels.files)
        whole = np.concatenate([_flat(pixels, file, each) for file in pixels.files])
        part = whole.reshape(pixels.shape)[index]
    if (pixels.slope, pixels.offset) != (1.0, 0.0):
        part = (part * pixels.slope + pixels.offset).astype(np.float32)
    return order.arrange(part)


def _start(pixels: _Pixels, file: Path) -> int:
    if pixels.start >= 0:
        return pixels.start
    return file.stat().st_size - prod(pixels.shape) // len(pixels.files) * pixels.dtype.itemsize


def _flat(pixels: _Pixels, file: Path, count: int) -> np.ndarray:
    """The first `count` numbers of one data file."""
    with file.open("rb") as stream:
        stream.seek(0 if pixels.compressed and pixels.start < 0 else _start(pixels, file))
        if pixels.text:
            return np.array(stream.read().split()[:count], dtype=pixels.dtype)
        if not pixels.compressed:
            return np.frombuffer(stream.read(count * pixels.dtype.itemsize), pixels.dtype)
        content = stream.read(pixels.size or -1)
    wanted = count * pixels.dtype.itemsize
    found = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, wanted)  # 32: gzip's header is known, too
    if len(found) < wanted:
        raise ValueError(f"its pixels end after {len(found)} of {wanted} bytes")
    return np.frombuffer(found, pixels.dtype)


def _header(path: Path) -> tuple[dict[str, tuple[str, str]], int]:
    """Fields by lower-case name, as (name, value), and the byte after the line that names the data.

    Raises:
        FileError: a field that every MetaImage has is missing.
    """
    fields: dict[str, tuple[str, str]] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and file.tell() < _LONGEST_HEADER:
            line = file.readline(_LONGEST_HEADER)
            if not line:
                break
            name, equals, value = _text(line).partition("=")
            if equals:
                fields[name.strip().lower()] = (name.strip(), value.strip())
        end = file.tell()
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if not _field(fields, name):
            raise FileError(path, f"its header lacks the field {name}")
    return fields, end


def _text(line: bytes) -> str:
    """UTF-8 as ITK writes it, else Latin-1 as older programs do."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _field(fields: dict[str, tuple[str, str]], *names: str) -> str | None:
    """The value of the first of several names that is there and isn't empty."""
    return next((fields[name.lower()][1] for name in names if fields.get(name.lower(), ("", ""))[1]), None)


def _is_true(fields: dict[str, tuple[str, str]], *names: str, default: str = "False") -> bool:
    return (_field(fields, *names) or default).lower() in ("true", "t", "1", "yes", "y")


def _pixels(path: Path, fields: dict[str, tuple[str, str]], end: int) -> _Pixels:
    sizes = (_field(fields, "DimSize") or "").replace(",", " ").split()
    declared = _field(fields, "NDims") or ""
    if not all(size.isdigit() for size in (declared, *sizes)) or len(sizes) != int(declared):
        raise FileError(path, f"expected NDims = {declared} sizes, got DimSize = {_field(fields, 'DimSize')}")
    if len(sizes) < 2:
        raise FileError(path, f"expected an image of rank 2 or more, got DimSize = {_field(fields, 'DimSize')}")
    kind = (_field(fields, "ElementType") or "").upper().removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise FileError(path, f"holds {_field(fields, 'ElementType')}", f"expected MET_ and one of {', '.join(_TYPES)}")
    big = _is_true(fields, "ElementByteOrderMSB", "BinaryDataByteOrderMSB")
    components = int(_number(path, fields, "ElementNumberOfChannels", "1"))
    shape = (*(int(size) for size in reversed(sizes)), components)
    files, local = _files(path, fields, end, shape)
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")
    pixels = _Pixels(
        files,
        end if local else int(_number(path, fields, "HeaderSize", "0")),
        shape,
        dtype,
        compressed=_is_true(fields, "CompressedData"),
        size=int(_number(path, fields, "CompressedDataSize", "0")) if len(files) == 1 else 0,
        text=not _is_true(fields, "BinaryData", default="True"),
        slope=_number(path, fields, "ElementToIntensityFunctionSlope", "1"),
        offset=_number(path, fields, "ElementToIntensityFunctionOffset", "0"),
    )
    each = (prod(shape) // len(files),) if 0 not in shape else shape
    for file in files:
        stored = file.stat().st_size - max(0, pixels.start)
        # a number of text takes two bytes at least, with the gap after it
        itemsize = 2 if pixels.text else dtype.itemsize
        check_stored(
            path, each if len(files) > 1 else shape, itemsize, stored + pixels.text, compressed=pixels.compressed
        )
    return pixels


def _number(path: Path, fields: dict[str, tuple[str, str]], name: str, default: str) -> float:
    text = _field(fields, name) or default
    try:
        return float(text)
    except ValueError:
        raise FileError(path, f"expected a number in {name}, got {text!r}") from None


def _files(
    path: Path, fields: dict[str, tuple[str, str]], end: int, shape: tuple[int, ...]
) -> tuple[tuple[Path, ...], bool]:
    """The data files in order, and whether the only one is the header's own file."""
    name = _field(fields, "ElementDataFile") or ""
    if name.upper() == "LOCAL":
        return (path,), True
    single = _beside(path, name)
    if single is not None:
        return (single,), False
    pattern = _PATTERN.fullmatch(name)
    if name.upper().split()[0] == "LIST":
        with path.open("rb") as file:
            file.seek(end)
            names = [line for line in map(str.strip, _text(file.read(_LONGEST_LIST)).splitlines()) if line]
        words = name.split()
        whole = int(words[1].upper().removesuffix("D")) if len(words) > 1 else len(shape) - 2
        count = prod(shape[: len(shape) - 1 - whole])
    elif pattern:
        text, first, last, step = pattern.groups()
        numbers = range(int(first), int(last) + 1, int(step or 1))
        if len(numbers) > prod(shape):
            raise FileError(path, f"names {len(numbers)} data files for {prod(shape)} voxels")
        names = [_numbered(text, number) for number in numbers]
        count = len(names)
    else:
        raise FileError(path, f"its data file {name} is missing")
    if len(names) < count or prod(shape) % max(1, count):
        raise FileError(path, f"expected {count} data files after {name.split()[0]}, got {len(names)}")
    found = [_beside(path, one) for one in names[:count]]
    missing = next((one for one, place in zip(names, found, strict=False) if place is None), None)
    if missing is not None:
        raise FileError(path, f"its data file {missing} is missing")
    return tuple(place for place in found if place is not None), False


def _numbered(pattern: str, number: int) -> str:
    """C's `%03d` and the like, without C's way of taking every other `%` for a command."""
    return re.sub(r"%(0?)(\d*)d", lambda match: f"{number:{match[1]}{match[2]}d}", pattern, count=1)


def _beside(path: Path, name: str) -> Path | None:
    """The file of that name beside the header, however the header's letters and slashes were meant."""
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        file = check_beside(path, spelling)
        if file.is_file():
            return file
    return None


def _vector(path: Path, fields: dict[str, tuple[str, str]], count: int, *names: str) -> np.ndarray | None:
    text = _field(fields, *names)
    if text is None:
        return None
    try:
        values = np.array([float(part) for part in text.replace(",", " ").split()])
    except ValueError:
        values = np.zeros(0)
    if len(values) != count or not np.isfinite(values).all():
        raise FileError(path, f"expected {count} numbers in {names[0]}, got {text!r}")
    return values


def _geometry(
    path: Path, fields: dict[str, tuple[str, str]], rank: int, lengths: Lengths
) -> tuple[list[np.ndarray], np.ndarray]:
    """LPS step in mm of each spatial axis, fastest first, and LPS origin."""
    spatial = min(rank, 3)
    unit = _field(fields, "DistanceUnits")
    factor = lengths.factor(None if unit == "?" else unit, "DistanceUnits") or 1.0
    spacing = _vector(path, fields, rank, "ElementSpacing", "ElementSize")
    steps = np.ones(spatial) if spacing is None else spacing[:spatial]
    if not (steps > 0).all():
        raise FileError(path, f"expected positive numbers in ElementSpacing, got {steps.tolist()}")
    directions = _vector(path, fields, rank * rank, "TransformMatrix", "Rotation", "Orientation")
    if directions is None:
        anatomy = (_field(fields, "AnatomicalOrientation") or "???").upper()
        if rank >= 3 and anatomy[:3] not in _IDENTITY:
            raise FileError(
                path,
                f"AnatomicalOrientation = {anatomy} without a TransformMatrix can be read in two ways",
                "add TransformMatrix = and the direction of each axis in LPS",
            )
        directions = np.eye(rank).ravel()
    matrix = directions.reshape(rank, rank)[:spatial, :spatial]
    if np.linalg.matrix_rank(matrix) < spatial:
        raise FileError(path, "the header's spacing or directions flatten an axis")
    start = _vector(path, fields, rank, "Offset", "Position", "Origin")
    origin = np.zeros(3)
    origin[:spatial] = 0.0 if start is None else start[:spatial] * factor
    return [np.pad(factor * step * axis, (0, 3 - spatial)) for step, axis in zip(steps, matrix, strict=True)], origin

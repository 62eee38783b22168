"""MetaImage through SimpleITK.

ITK's world is LPS, also where a file gives no directions; x and y change sign here. Its arrays are already
plane, row, column.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.io.axes import AxisOrder, order_axes
from voxelry.data.io.guard import check_numeric, check_stored
from voxelry.data.io.nifti import volume_affine
from voxelry.data.io.record import ImageFile

__all__ = ["open_file", "write_file"]

_LPS = np.diag([-1.0, -1.0, 1.0])
_LONGEST_HEADER = 1 << 16


@contextmanager
def _silent_itk() -> Iterator[None]:
    """Keep ITK's warnings, which it prints to standard error, to itself."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a MetaImage file; see `open_image` for the keywords.

    Raises:
        FileError: a broken header, a missing data file, a grid that ITK can't represent.
    """
    fields = _header(path)
    with _silent_itk():
        reader = _reader(path)
        reader.ReadImageInformation()
    shape = tuple(int(size) for size in reversed(reader.GetSize()))
    rank, components = len(shape), int(reader.GetNumberOfComponents())
    if rank < 2:
        raise FileError(path, f"expected an image of rank 2 or more, got shape {shape}")
    dtype = check_numeric(path, _dtype(path, reader.GetPixelID()))
    _check_size(path, fields, (*shape, components), dtype.itemsize)
    order = order_axes(
        path,
        (*shape, components),
        "c" * (rank - 3) + "zyx"[-rank:] + "s",
        ndim=ndim,
        channel_axis=channel_axis,
    )
    spatial = min(rank, 3)
    direction = np.asarray(reader.GetDirection()).reshape(rank, rank)[:spatial, :spatial]
    steps = np.zeros((3, spatial))
    steps[:spatial] = direction * np.asarray(reader.GetSpacing())[:spatial]
    origin = np.zeros(3)
    origin[:spatial] = reader.GetOrigin()[:spatial]
    if not np.isfinite(steps).all() or np.linalg.matrix_rank(steps) < spatial:
        raise FileError(path, "the header's spacing or directions flatten an axis")
    return ImageFile(
        path=path,
        space=order.space({rank - 1 - axis: _LPS @ steps[:, axis] for axis in range(spatial)}, _LPS @ origin),
        channels=order.channels,
        dtype=dtype,
        format="MetaImage",
        loader=partial(_load, path, order),
        has_orientation=any(name in fields for name in ("transformmatrix", "rotation", "orientation")),
        metadata={key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()},
    )


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """MetaImage, compressed where header and pixels share a file; a plane becomes one slice."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    affine = _LPS @ volume_affine(space)[:3]
    data = array.reshape(len(array), *(1,) * (3 - space.ndim), *space.shape)
    image = sitk.GetImageFromArray(data[0] if len(data) == 1 else np.moveaxis(data, 0, -1), isVector=len(data) > 1)
    steps = affine[:, 2::-1]
    spacing = np.linalg.norm(steps, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin(affine[:, 3].tolist())
    with _silent_itk():
        sitk.WriteImage(image, str(path), useCompression=path.suffix.lower() == ".mha")


def _load(path: Path, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    parts = order.index(window)[:-1]  # the last stored axis is ITK's components, read whole
    reader = _reader(path)
    with _silent_itk():
        reader.ReadImageInformation()
        if reader.GetDimension() <= 4:
            reader.SetExtractIndex([part.start for part in reversed(parts)])
            reader.SetExtractSize([part.stop - part.start for part in reversed(parts)])
            parts = tuple(slice(None) for _ in parts)
        array = sitk.GetArrayFromImage(reader.Execute())
    return order.arrange(array.reshape(*array.shape[: len(parts)], -1)[parts])


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO")
    return reader


def _dtype(path: Path, pixel: int) -> np.dtype:
    for name in ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64"):
        if pixel in (getattr(sitk, f"sitk{name}"), getattr(sitk, f"sitkVector{name}")):
            return np.dtype(name.lower())
    raise FileError(path, f"holds {sitk.GetPixelIDValueAsString(pixel)}", "expected real numbers")


def _header(path: Path) -> dict[str, str]:
    """Fields by lower-case name. MetaIO prints its complaints to standard error, so they are made here.

    Raises:
        FileError: a field that every MetaImage has is missing.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and file.tell() < _LONGEST_HEADER:
            line = file.readline(_LONGEST_HEADER)
            if not line:
                break
            name, equals, value = line.decode("latin-1").partition("=")
            if equals:
                fields[name.strip().lower()] = value.strip()
        fields["end"] = str(file.tell())
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if not fields.get(name.lower()):
            raise FileError(path, f"its header lacks the field {name}")
    sizes = fields["dimsize"].split()
    if not all(size.isdigit() for size in (fields["ndims"], *sizes)) or len(sizes) != int(fields["ndims"]):
        raise FileError(path, f"expected NDims = {fields['ndims']} sizes, got DimSize = {fields['dimsize']}")
    return fields


def _check_size(path: Path, fields: dict[str, str], shape: tuple[int, ...], itemsize: int) -> None:
    name = fields["elementdatafile"]
    if name.upper().startswith("LIST") or "%" in name:
        return  # one file per slice: ITK says which of them is missing
    local = name.upper() == "LOCAL"
    data = path if local else path.parent / name
    if not data.is_file():
        raise FileError(path, f"its data file {name} is missing")
    stored = data.stat().st_size - (int(fields["end"]) if local else 0)
    check_stored(path, shape, itemsize, stored, compressed=fields.get("compresseddata", "").lower() == "true")

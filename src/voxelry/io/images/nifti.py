"""NIfTI-1 and -2, and the other neuroimaging formats that nibabel reads (Analyze, MGH, MINC, AFNI, PAR/REC).

nibabel indexes arrays as (i, j, k, t, ...): the first three become column, row, plane (MINC stores them in
array order, time first). The affine is nibabel's choice (sform, else qform, else the format's default),
brought to millimetres where the header says metres or micrometres.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io.guard import check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, order_axes
from voxelry.io.images.record import ImageFile
from voxelry.io.units import Lengths

__all__ = ["open_file", "write_file"]

_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # code in xyzt_units: not told, metre, millimetre, micrometre
_GZIP = b"\x1f\x8b"
_HEADER = 1024  # bytes of a header, and more
_COMPRESSED = (".gz", ".mgz", ".bz2", ".zst")


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a file that nibabel reads; see `open_image` for the keywords.

    Raises:
        FileError: a broken header, too few bytes, a CIFTI matrix, an affine that flattens an axis.
    """
    with _loaded(path) as image:
        return _describe(path, image, channel_axis, ndim)


def _describe(path: Path, image: Any, channel_axis: int | None, ndim: int | None) -> ImageFile:
    if not isinstance(image, SpatialImage) or isinstance(image, nibabel.Cifti2Image):
        raise FileError(path, f"{type(image).__name__} has no voxel grid")
    shape = tuple(int(size) for size in image.shape)
    if len(shape) < 2:
        raise FileError(path, f"expected an image of rank 2 or more, got shape {shape}")
    stored = np.dtype(image.get_data_dtype())
    compressed = _check_size(path, image, shape, stored)
    colours = stored.names or ()
    dtype = check_numeric(path, stored[0] if colours else stored)
    if not colours and image.dataobj[(0,) * len(shape)].dtype.newbyteorder("=") != stored.newbyteorder("="):
        dtype = np.dtype(np.float32)  # a scale or an offset is applied on the way
    axes = _axes(image, len(shape))
    order = order_axes(path, shape, axes, ndim=ndim, channel_axis=channel_axis)
    affine = np.asarray(image.affine, dtype=np.float64)
    lengths = Lengths(path)
    units = _units(image.header, lengths)
    _check_distances(image, shape, lengths)
    affine = np.diag([units, units, units, 1.0]) @ affine
    first = axes.index(axes.strip("c")[0])
    steps = {first + column: affine[:3, column] for column in range(min(3, len(shape) - first))}
    return ImageFile(
        path=path,
        space=order.space(steps, affine[:3, 3]),
        channels=order.channels * max(1, len(colours)),
        dtype=dtype,
        format=type(image).__name__.removesuffix("Image").replace("Nifti1Pair", "Nifti1"),
        loader=partial(_load, path, order),
        has_orientation=_has_orientation(image.header),
        metadata=_metadata(image.header),
        spacing_fault=lengths.fault,
        in_windows=not compressed,
    )


def write_file(
    path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None, *, description: str = ""
) -> None:
    """NIfTI-1, or NIfTI-2 where an axis is longer than 32767; a plane becomes one slice, channels the fourth axis.

    The affine is the sform; the qform too, unless it is sheared, which a qform can't hold. NIfTI readers are
    at home with 8 to 32-bit integers and floats: 64-bit integers are narrowed where their values allow,
    float16 becomes float32.
    """
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        limits = np.iinfo(np.int32)
        if limits.min <= array.min() and array.max() <= limits.max:
            array = array.astype(np.int32)
    matrix = volume_affine(space)
    data = array.reshape(len(array), *(1,) * (3 - space.ndim), *space.shape).transpose(3, 2, 1, 0)
    kind = nibabel.Nifti2Image if max(data.shape) > 32767 else nibabel.Nifti1Image
    affine = matrix[:, [2, 1, 0, 3]]
    image = kind(data if len(array) > 1 else data[..., 0], affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    exact, held, quaternion = (Space(data.shape[:3], a) for a in (affine, image.get_sform(), image.get_qform()))
    if not held.is_close(exact, tolerance=0.1):
        raise SettingError("NIfTI can't hold voxels so small so far from the origin (write .mha, which can)")
    if not quaternion.is_close(held, tolerance=1e-2):
        image.header["qform_code"] = 0
    nibabel.save(image, path)


def volume_affine(space: Space) -> np.ndarray:
    """The affine `(4, 4)` of a space in array order; a plane gets a plane axis of 1 mm along its normal."""
    if space.affine.shape[1] == 4:
        return np.array(space.affine)
    row, column = space.affine[:3, 0], space.affine[:3, 1]
    normal = np.cross(column, row)
    step = np.append(normal / np.linalg.norm(normal), 0.0)
    return np.column_stack([step, space.affine])


@contextmanager
def _loaded(path: Path) -> Iterator[Any]:
    """nibabel's image; the file that its PAR/REC reader leaves open is closed afterwards."""
    _check_compression(path)
    image = nibabel.load(path)
    try:
        yield image
    finally:
        left_open = getattr(getattr(image, "dataobj", None), "file_like", None)
        if left_open is not None and hasattr(left_open, "close"):
            left_open.close()


def _check_compression(path: Path) -> None:
    """Tell apart what nibabel calls a file type that it can't work out."""
    named = path.suffix.lower() == ".gz"
    with path.open("rb") as file:
        start = file.read(len(_GZIP))
    packed = start == _GZIP
    if not start:
        raise FileError(path, "is empty", "copy it again from where it is whole")
    if named and not packed:
        raise FileError(path, "isn't compressed, as its name says", f"rename it to {path.name[:-3]}")
    if packed and path.suffix.lower() == ".nii":
        raise FileError(path, "is compressed, which its name doesn't say", f"rename it to {path.name}.gz")
    if named:
        try:
            with gzip.open(path) as stream:
                stream.read(_HEADER)
        except (OSError, EOFError, zlib.error) as error:
            raise FileError(
                path, f"its compression is damaged: {error}", "copy it again from where it is whole"
            ) from error


def _load(path: Path, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    with _loaded(path) as image:
        array = np.asarray(image.dataobj[order.index(window)])
    if not array.dtype.names:
        return order.arrange(array)
    channels = [order.arrange(array[name]) for name in array.dtype.names]
    return np.stack(channels, axis=1).reshape(-1, *channels[0].shape[1:])


def _axes(image: Any, rank: int) -> str:
    if isinstance(image, nibabel.Minc1Image):  # Minc2Image is a subclass
        return "c" * (rank - 3) + "zyx"[-min(rank, 3) :]
    return "xyz"[: min(rank, 3)] + "c" * (rank - 3)


def _check_size(path: Path, image: Any, shape: tuple[int, ...], stored: np.dtype) -> bool:
    """Refuse pixels that can't be all there; whether they are compressed."""
    holder = image.file_map["image"].filename if "image" in image.file_map else None
    data = Path(holder) if holder is not None else path
    compressed = data.suffix.lower() in _COMPRESSED or isinstance(image, nibabel.Minc1Image)
    offset = 0 if compressed else int(getattr(image.dataobj, "offset", 0) or 0)
    check_stored(path, shape, stored.itemsize, data.stat().st_size - offset, compressed=compressed)
    return compressed


def _units(header: Any, lengths: Lengths) -> float:
    if not isinstance(header, nibabel.Nifti1Header):  # Nifti2Header is a subclass
        return 1.0
    code = int(header["xyzt_units"]) & 7
    if code not in _MILLIMETRES:
        lengths.lack(f"xyzt_units: {code} is no unit of length; expected 1 (m), 2 (mm) or 3 (µm)")
    return _MILLIMETRES.get(code, 1.0)


def _check_distances(image: Any, shape: tuple[int, ...], lengths: Lengths) -> None:
    """`pixdim` of some axes only is a fault where the affine comes from it: nibabel takes 1 for the 0 of others."""
    header = image.header
    told = isinstance(header, nibabel.Nifti1Header) and header["sform_code"] > 0
    if told or not isinstance(header, nibabel.AnalyzeHeader):
        return
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as stream:
        stored = type(header).from_fileobj(stream, check=False)["pixdim"][1:4]
    steps = [float(step) for step, size in zip(stored, shape, strict=False) if size > 1]
    if any(steps) and not all(steps):
        lengths.lack(f"says how far apart voxels are along some axes only: pixdim {', '.join(map(str, steps))}")


def _has_orientation(header: Any) -> bool:
    if isinstance(header, nibabel.Nifti1Header):
        return bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    return not isinstance(header, nibabel.AnalyzeHeader)


def _metadata(header: Any) -> dict[str, Any]:
    if not isinstance(header, nibabel.Nifti1Header):
        return {}
    code = int(header["xyzt_units"])
    return {
        "units": nibabel.nifti1.unit_codes.label.get(code & 7, str(code & 7)),
        "time_units": nibabel.nifti1.unit_codes.label.get(code & 56, str(code & 56)),
        "description": bytes(header["descrip"]).rstrip(b"\0").decode("latin-1"),
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
    }

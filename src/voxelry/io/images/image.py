"""Reading and writing images of any supported format through one pair of functions.

A format is known by the suffix of its file, a folder by what lies in it. What every reader hands out is the same:
`(C, *spatial)` in array order with a `Space` in RAS+ mm. Other packages add formats through entry points that are named
by the suffix, `".img3" = "my_package:open_file"` in the groups `voxelry.readers` and `voxelry.writers`.

A reader is a function `open_file(path, *, dataset, channel_axis, ndim) -> ImageFile` that reads the header alone; the
keywords are those of `open_image`, and what a format has no use for is left alone. It answers:
    `space`: the grid in array order; a file that doesn't say where it lies has `Space.from_spacing(shape, spacing)` and
        `has_orientation=False`. An image one voxel thick is 2-D unless `ndim=3`.
    `in_windows`: False where any window costs what the whole image does, as where all voxels are one compressed stream.
    `channels`, `dtype`: of what is read.
    `loader`: a function of slices, one per axis of `space`, that opens the file anew and answers `(C, *window)`; make
        it of `functools.partial` and plain values, as it goes to other processes.
What is wrong with a file is a `FileError` that names it; any other exception of a reader becomes one (`core.guard`).

A writer is a function `write_file(path, array, space, channel_names)` that writes `array (C, *space.shape)` to `path`,
which is renamed to what was asked for once it is whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError, SettingError
from voxelry.core.guard import guarded
from voxelry.core.registry import Registry
from voxelry.core.remote import Remote, as_path
from voxelry.core.space import Space
from voxelry.io.images.elsewhere import open_copy
from voxelry.io.images.joined import join_channels, join_masks
from voxelry.io.images.record import Image, ImageFile, Loader

__all__ = [
    "IMAGE_OPTIONS",
    "READERS",
    "WRITERS",
    "Image",
    "ImageFile",
    "image_formats",
    "is_image",
    "open_image",
    "read_image",
    "split_dataset",
    "write_image",
]


def _places(function: str, modules: dict[str, str]) -> dict[str, str]:
    """The place of a function by suffix, of modules beside this one and the suffixes of each."""
    return {
        suffix: f"voxelry.io.images.{module}:{function}"
        for module, listed in modules.items()
        for suffix in listed.split()
    }


READERS: Registry[Callable[..., ImageFile]] = Registry(
    "readers",
    "image format",
    _places(
        "open_file",
        {
            "nifti": ".nii.gz .nii .hdr .mgh .mgz .mnc .head .par",
            "metaimage": ".mha .mhd",
            "nrrd": ".nrrd .nhdr",
            "seg_nrrd": ".seg.nrrd",
            "dicom": ".dcm .dicom",
            "array": ".npy .npz",
            "tiff": ".tif .tiff .btf",
            "zarr": ".zarr",
            "hdf5": ".h5 .hdf5 .hdf .nc",
            "raster": ".png .jpg .jpeg .bmp",
        },
    ),
)
"""Readers by the suffix of files (and, for `.zarr`, folders), lower case, without data partners."""

WRITERS: Registry[Callable[..., None]] = Registry(
    "writers",
    "image format",
    _places(
        "write_file",
        {
            "nifti": ".nii.gz .nii",
            "metaimage": ".mha .mhd",
            "array": ".npy",
            "tiff": ".ome.tif .ome.tiff .tif .tiff",
            "zarr": ".zarr",
            "raster": ".png",
        },
    ),
)
"""Writers by suffix."""

_PARTNERS = {".img": ".hdr", ".img.gz": ".hdr", ".brik": ".head", ".brik.gz": ".head", ".rec": ".par"}
_DICOM = (".dcm", ".dicom")
_NIFTI = (".nii", ".nii.gz")
_LONGEST_NAME = 255  # that may be asked of a disk
_ZARR_MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")

IMAGE_OPTIONS = ("dataset", "spacing", "channel", "channel_axis", "ndim", "stack", "channel_files")
"""What `open_image` can be told beside the path."""


def open_image(
    path: str | Path,
    *,
    dataset: str | None = None,
    spacing: float | Sequence[float] | None = None,
    channel_axis: int | None = None,
    channel: int | None = None,
    ndim: int | None = None,
    stack: int | None = None,
    channel_files: Sequence[str] | None = None,
) -> ImageFile:
    """Read the header of an image.

    Args:
        path: here or elsewhere (`s3://bucket/scan.nii.gz`): a file, a DICOM series folder, a zarr folder,
            `file.h5::dataset`, or a folder of masks, a file for each class of a label map, of which `dataset` names
            those that are wanted.
        dataset: which of several images a container holds: the path of an HDF5 dataset, of a zarr array or
            group, the name of an array in an npz, the SeriesInstanceUID of one DICOM series in a folder, or names of
            segments between commas, which become 1, 2, ... in that order.
        spacing: mm per voxel in array order, one number or one per spatial axis, instead of the file's own;
            directions and origin stay.
        channel_axis: stored axis that holds channels, for files that don't say (npy, npz, zarr, HDF5, TIFF).
        channel: deliver this one alone, from 0, of an image that has several (time points count as channels).
        ndim: rank that is wanted, 2 or 3. None: the file's own, where an image one voxel thick counts as 2-D.
            A 3-D array without named axes is a volume; `ndim=2` makes its last axis channels.
        stack: which of several stacks of planes, from 0, where the frames of DICOM files don't share a grid.
        channel_files: names of files beside `path` that hold the channels after its own, on the same grid.

    Raises:
        FileError: no such file, an unknown format, a broken header, no such channel, an image that can't have that
            rank, or a unit of length that isn't known where `spacing` isn't given.
    """
    path, dataset = split_dataset(as_path(path), None if dataset is None else str(dataset))
    common: dict[str, Any] = {"channel_axis": channel_axis, "ndim": ndim}
    with guarded(path):
        if dataset is not None and path.is_dir() and not _is_zarr(path) and not _has_dicom(path):
            image = _open_masks(path, [name.strip() for name in dataset.split(",")], common)
        else:
            suffix = _format_of(path)
            more = {"stack": stack} if suffix in _DICOM else {}
            reader = partial(READERS[suffix], dataset=dataset, **common, **more)
            image = reader(path) if suffix == ".zarr" else open_copy(path, reader)
        if spacing is not None:
            image = dataclasses.replace(image, space=image.space.with_spacing(spacing), spacing_fault=None)
        if channel_files:
            common |= {"dataset": dataset, "stack": stack, "spacing": spacing}
            image = join_channels([image, *(open_image(path.parent / name, **common) for name in channel_files)])
        if channel is not None:
            image = _single_channel(image, channel)
        if image.spacing_fault is not None:
            raise image.spacing_fault
        return image


def read_image(path: str | Path, **settings: Any) -> Image:
    """Read a whole image; keywords are those of `open_image`.

    Raises:
        FileError: as `open_image` and `ImageFile.read`.
    """
    image = open_image(path, **settings)
    return Image(image.read(), image.space, image.path)


def write_image(
    path: str | Path,
    array: np.ndarray,
    space: Space,
    *,
    channel_names: Sequence[str] | None = None,
    version: str | None = None,
    description: str = "",
) -> Path:
    """Write an image in the format that the suffix names, whole or not at all.

    NIfTI, MetaImage, OME-TIFF and OME-Zarr keep the affine (the last two in a note of our own beside the
    spacing that their format can hold); npy and PNG keep no space at all. A plane is written as a volume one
    voxel thick where the format needs that to say where it lies.

    Args:
        path: its suffix is one of `WRITERS`; the folder is made.
        array: `(C, *space.shape)`, real numbers; bool is written as uint8, what is wider than float64 as that.
        space: where the array lies.
        channel_names: one per channel, for formats that have a place for them (OME-TIFF, OME-Zarr).
        version: of OME-Zarr, `0.5` (None) or `0.6`; other formats have none to choose.
        description: up to 79 characters for NIfTI's header.

    Returns:
        The path.

    Raises:
        SettingError: array, space and names don't fit together.
        FileError: a suffix or a type that can't be written, or the disk refuses.
    """
    path, array = as_path(path), np.asarray(array)
    if array.ndim != space.ndim + 1 or array.shape[1:] != space.shape:
        raise SettingError(f"array: expected shape (C, {', '.join(map(str, space.shape))}), got {array.shape}")
    if array.dtype.kind not in "buif" or array.size == 0:
        raise SettingError(f"array: expected at least one real number, got {array.dtype} of shape {array.shape}")
    if channel_names is not None and len(channel_names) != len(array):
        raise SettingError(f"channel_names: expected {len(array)} names, got {len(channel_names)}")
    suffix = _suffix(path, WRITERS)
    if suffix is None:
        raise FileError(path, "can't write this format", f"use one of {' '.join(WRITERS)}")
    if version is not None and (suffix != ".zarr" or version not in ("0.5", "0.6")):
        raise SettingError(f"version: expected 0.5 or 0.6 of a .zarr, got {version!r} for {path.name}")
    chosen: dict[str, str] = {} if version is None else {"version": version}
    if description and suffix not in _NIFTI:
        raise SettingError(f"description: expected none for {suffix}; only NIfTI has a place for it")
    if description:
        chosen["description"] = description
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    with replacing(path) as place:
        WRITERS[suffix](place, array, space, None if channel_names is None else tuple(channel_names), **chosen)
    return path


def image_formats() -> tuple[str, ...]:
    """What `predict --format` can be told for tasks whose answer is an image, the default first."""
    return tuple("ome.zarr" if suffix == ".zarr" else suffix[1:] for suffix in WRITERS)


def is_image(path: str | Path) -> bool:
    """Whether `open_image` would try: a known suffix, or a folder that holds a zarr or a DICOM file."""
    path = split_dataset(as_path(path))[0]
    if path.is_dir():
        return _is_zarr(path) or _has_dicom(path)
    return _suffix(path, READERS) is not None or (path.is_file() and not path.suffix and _is_dicom(path))


def split_dataset(path: Path, dataset: str | None = None) -> tuple[Path, str | None]:
    """Take the dataset off `file.h5::dataset`.

    Raises:
        SettingError: another one is given beside it.
    """
    text = str(path)
    if "::" not in text or (len(path.name) < _LONGEST_NAME and path.exists()):
        return path, dataset
    file, _, inside = text.partition("::")
    if dataset not in (None, inside):
        raise SettingError(f"dataset: {dataset!r} contradicts {text}")
    return as_path(file), inside


def _single_channel(image: ImageFile, channel: int) -> ImageFile:
    if isinstance(channel, bool) or not 0 <= channel < image.channels:
        raise FileError(image.path, f"has no channel {channel}", f"there are {image.channels}, counted from 0")
    return dataclasses.replace(image, channels=1, order=None, loader=partial(_load_channel, image.loader, channel))


def _load_channel(load: Loader, channel: int, window: tuple[slice, ...]) -> np.ndarray:
    return load(window)[channel : channel + 1]


def _format_of(path: Path) -> str:
    """The suffix whose reader takes a file or folder."""
    if not path.exists():
        raise FileError(path, "no such file")
    if path.is_dir():
        if _is_zarr(path):
            return ".zarr"
        if _has_dicom(path):
            return ".dcm"
        raise FileError(path, "expected an image, got a folder without zarr metadata or DICOM files")
    suffix = _suffix(path, [*READERS, *_PARTNERS])
    if suffix == ".zarr":
        raise FileError(path, "expected a zarr folder, got a file")
    if suffix is not None:
        return _PARTNERS.get(suffix, suffix)
    if _is_dicom(path):
        return ".dcm"
    raise FileError(path, "unknown image format", f"known: {' '.join(READERS)}, DICOM and zarr folders")


def _suffix(path: Path, known: Iterable[str]) -> str | None:
    name = path.name.lower()
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default=None)


def _open_masks(folder: Path, names: Sequence[str], options: dict[str, Any]) -> ImageFile:
    """A label map of the masks in a folder that have these names."""
    ends = {file: _suffix(file, READERS) for file in sorted(folder.iterdir()) if file.is_file()}
    files = {file.name[: -len(end)]: file for file, end in ends.items() if end is not None}
    return join_masks(folder, {name: open_image(files[name], **options) for name in names if name in files}, names)


def _is_zarr(folder: Path) -> bool:
    if folder.suffix.lower() == ".zarr":
        return True
    if isinstance(folder, Remote):
        return folder.has_any(_ZARR_MARKERS)
    return any((folder / marker).is_file() for marker in _ZARR_MARKERS)


def _has_dicom(folder: Path) -> bool:
    """By a suffix, else by what is in files whose names say nothing of what they are."""
    files = list(folder.iterdir())
    if any(item.suffix.lower() in _DICOM and item.is_file() for item in files):
        return True
    return any(_suffix(item, READERS) is None and item.is_file() and _is_dicom(item) for item in files)


def _is_dicom(path: Path) -> bool:
    """The four letters after the preamble (DICOM PS3.10, section 7.1)."""
    try:
        if isinstance(path, Remote):
            return path.read_range(0, 132)[128:] == b"DICM"
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False

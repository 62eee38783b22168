"""HDF5: one dataset of a file is the image.

Which one is said by `dataset=` or `file.h5::dataset`; a file with a single dataset of two or more axes
needs no word. Its axes are those that an attribute `axistags` (vigra, ilastik) or `DIMENSION_LABELS` (the dimension
scales of HDF5) names. An attribute `element_size_um` (as ilastik and PlantSeg write it, one number per stored or per
spatial axis, stored order) is the spacing; one that seems to say it in another way (`resolution`, `voxel_size`, ...) is
refused unless the spacing is told. Scales of axes, as netCDF keeps them, name the axes and say their spacing where
they have a unit of length; packed values are unpacked (`packing`).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.guard import guarded
from voxelry.io.advice import choice
from voxelry.io.guard import check_beside, check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, named_axes, order_axes
from voxelry.io.images.packing import unpacked
from voxelry.io.images.record import ImageFile
from voxelry.io.units import Lengths

__all__ = ["dataset_names", "open_file"]

_UNEVEN = 0.01  # of a step: what rounding in coordinates may make of an even one
_DEEPEST = 8  # files of virtual datasets of virtual datasets
_OTHER_NOTES = ("axistags", "DIMENSION_LIST", "REFERENCE_LIST")


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of an HDF5 dataset; see `open_image` for the keywords.

    Raises:
        FileError: not HDF5, no such dataset, several to choose from, or axes whose names can't be placed.
    """
    with h5py.File(path, "r") as file:
        stored, name = _dataset(path, file, dataset)
        _check_sources(path, stored)
        shape = tuple(int(size) for size in stored.shape)
        dtype = check_numeric(path, stored.dtype)
        # chunks that were never written are the fill value, so only contiguous data have to be there
        contiguous = stored.chunks is None and not stored.is_virtual and stored.external is None
        present = stored.id.get_storage_size() > 0
        check_stored(path, shape, stored.dtype.itemsize if contiguous and present else 0, path.stat().st_size)
        said = {name: stored.attrs[name] for name in stored.attrs if name not in _OTHER_NOTES}
        axes = named_axes(path, _axis_names(path, stored), shape, ndim=ndim, channel_axis=channel_axis)
        lengths = Lengths(path)
        places = _coordinates(stored, axes, lengths)
    order = order_axes(path, shape, axes, ndim=ndim)
    size = said.get("element_size_um")
    if size is None:
        lengths.overlook(said)
    spacing = places if size is None else _spacing(np.asarray(size, dtype=np.float64).ravel(), axes, lengths)
    image = ImageFile(
        path=path,
        space=order.plain_space(spacing),
        channels=order.channels,
        dtype=dtype,
        format="HDF5",
        loader=partial(_load, path, name, order),
        metadata={"dataset": name},
        order=order,
        spacing_fault=lengths.fault,
    )
    return unpacked(image, said)


def dataset_names(path: Path) -> list[str]:
    """The datasets of two or more axes in a file, groups and all: `group/name`.

    Raises:
        FileError: not HDF5.
    """
    with guarded(path), h5py.File(path, "r") as file:
        return [name for name, item in _datasets(file).items() if len(item.shape or ()) >= 2]


def _axis_names(path: Path, stored: h5py.Dataset) -> list[str]:
    """What the file calls each axis, "" where it says nothing."""
    tags = stored.attrs.get("axistags")
    if tags is None:
        _check_scales(path, stored)
        labels = zip(_labels(path, stored), stored.dims, strict=True)
        return [label or _scale_name(dimension) for label, dimension in labels]
    try:
        names = [str(axis["key"]) for axis in json.loads(tags)["axes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(path, f"its attribute axistags can't be read: {error!r}") from None
    if len(names) != len(stored.shape):
        raise FileError(path, f"its attribute axistags names {len(names)} axes, the dataset has {len(stored.shape)}")
    return names


def _labels(path: Path, stored: h5py.Dataset) -> list[str]:
    """The texts of `DIMENSION_LABELS`; the library's own function ends the process where they are anything else.

    Raises:
        FileError: no text for each axis.
    """
    said = stored.attrs.get("DIMENSION_LABELS")
    if said is None:
        return [""] * len(stored.shape)
    texts = said.tolist() if isinstance(said, np.ndarray) else [said]
    if len(texts) != len(stored.shape) or not all(isinstance(text, str | bytes) for text in texts):
        raise FileError(path, f"its attribute DIMENSION_LABELS isn't a text for each of {len(stored.shape)} axes")
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in texts]


def _check_scales(path: Path, stored: h5py.Dataset) -> None:
    """Refuse a `DIMENSION_LIST` that isn't one, before the library reads it.

    Raises:
        FileError: other than a list of references for each axis.
    """
    if "DIMENSION_LIST" not in stored.attrs:
        return
    said = stored.attrs.get_id("DIMENSION_LIST")
    inner = h5py.check_vlen_dtype(said.dtype)
    if said.shape != (len(stored.shape),) or inner is None or h5py.check_ref_dtype(inner) is not h5py.Reference:
        raise FileError(path, f"its attribute DIMENSION_LIST isn't a list for each of {len(stored.shape)} axes")


def _check_sources(path: Path, stored: h5py.Dataset, depth: int = 0) -> None:
    """Refuse pixels that are in files elsewhere than beside this one.

    Raises:
        FileError: names such a file, or files that name each other.
    """
    if depth > _DEEPEST:
        raise FileError(path, "its virtual datasets go on through too many files")
    for name, *_ in stored.external or ():
        check_beside(path, name)
    for source in stored.virtual_sources() if stored.is_virtual else ():
        file = path if source.file_name == "." else check_beside(path, source.file_name)
        if file != path and file.is_file():
            with h5py.File(file, "r") as other:
                inner = other.get(source.dset_name)
                if isinstance(inner, h5py.Dataset):
                    _check_sources(file, inner, depth + 1)
        elif source.dset_name.strip("/") != (stored.name or "").strip("/"):
            inner = stored.file.get(source.dset_name)
            if isinstance(inner, h5py.Dataset):
                _check_sources(path, inner, depth + 1)


def _scale_name(dimension: h5py.DimensionManager) -> str:
    """What netCDF calls an axis: the name of the dataset that is its scale."""
    return str(dimension[0].name).rpartition("/")[2] if len(dimension) else ""


def _coordinates(stored: h5py.Dataset, axes: str, lengths: Lengths) -> dict[int, float]:
    """mm by stored axis, from the coordinates that netCDF and others keep beside an array, with their unit."""
    found = {}
    for axis, letter in enumerate(axes):
        if letter not in "zyx" or not len(stored.dims[axis]):
            continue
        scale = stored.dims[axis][0]
        places = np.asarray(scale[()], dtype=np.float64).ravel() if scale.dtype.kind in "iuf" else np.array([])
        steps = np.diff(places)
        if not steps.size or not steps.any():  # an axis that has a name, and no coordinates
            continue
        name, step = _scale_name(stored.dims[axis]), float(np.abs(np.mean(steps)))
        if not step or np.ptp(steps) > _UNEVEN * step:
            lengths.lack(f"its coordinates {name} aren't evenly spaced")
            continue
        unit = scale.attrs.get("units")
        factor = lengths.factor(
            unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit, f"units of {name}"
        )
        if factor is not None:
            found[axis] = step * factor
        elif not np.isclose(step, 1.0):
            lengths.lack(f"its coordinates {name} are {step:.6g} apart, in no unit of length")
    untold = [axes[axis] for axis in range(len(axes)) if axes[axis] in "zyx" and axis not in found]
    if found and untold:
        lengths.lack(f"says in which unit some axes are, not along {', '.join(untold)}")
    return found


def _spacing(size: np.ndarray, axes: str, lengths: Lengths) -> dict[int, float]:
    """mm by stored axis, from µm for each of them or for the spatial ones only."""
    spatial = [axis for axis, letter in enumerate(axes) if letter in "zyx"]
    if len(size) == len(axes):
        size = size[spatial]
    if len(size) != len(spatial) or not np.all(np.isfinite(size) & (size > 0)):
        listed = ", ".join(f"{step:g}" for step in size)
        lengths.lack(f"element_size_um: expected {len(spatial)} positive numbers for the axes {axes}, got {listed}")
        return {}
    return dict(zip(spatial, (size * 1e-3).tolist(), strict=True))


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def _dataset(path: Path, file: h5py.File, dataset: str | None) -> tuple[h5py.Dataset, str]:
    found = _datasets(file)
    if dataset is not None:
        name = dataset.strip("/")
        if name not in found:
            raise FileError(
                path, f"no dataset {dataset!r}", f"there are {', '.join(list(found)[:10])}" if found else ""
            )
        return found[name], name
    images = [name for name, item in found.items() if item.ndim is not None and len(item.shape or ()) >= 2]
    if len(images) != 1:
        fault = f"holds {len(images)} datasets of two or more axes, expected one to be chosen"
        raise FileError(path, fault, choice(images))
    return found[images[0]], images[0]


def _load(path: Path, name: str, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    with h5py.File(path, "r") as file:
        stored, index = file[name], order.index(window)
        if stored.chunks is not None and not stored.id.get_storage_size():  # nothing was ever written
            shape = [len(range(size)[part]) for size, part in zip(stored.shape, index, strict=True)]
            return order.arrange(np.full(shape, stored.fillvalue, stored.dtype))
        return order.arrange(stored[index])

"""What is to be indexed, found in folders; and the objects and the intensities of an image, by its pixels.

A folder may have any layout of `data.layouts`; the objects are those of its instances. Files of HDF5 and zarr without
any may hold their labels: a dataset `label` (or `labels`, `instances`, `segmentation`, `mask`, `masks`) beside `raw`
(or `image`, `data`), OME-Zarr's `labels/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.guard import guarded
from voxelry.data.crops.reader import CropReader, Stored
from voxelry.data.crops.selection import Criterion
from voxelry.data.crops.source import Listed, Objects, Source, id_array
from voxelry.data.label_grid import class_numbers, whole_numbers
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.io import is_image

__all__ = ["QUANTILES", "find_objects", "intensities", "scan_folder"]

QUANTILES = (0, 0.1, 0.5, 1, 2, 5, 25, 50, 75, 95, 98, 99, 99.5, 99.9, 100)

_RAW = ("raw", "image", "images", "data", "volume")
_LABEL = ("label", "labels", "instances", "instance", "segmentation", "masks", "mask")
_SLAB = 1 << 22  # voxels of labels looked at at a time
_SAMPLE = 1 << 24  # voxels that intensities are taken from


def scan_folder(
    root: Path,
    layout: str = "auto",
    criteria: Sequence[Criterion] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """The images of a folder, or one image, with the labels that belong to them.

    Columns that criteria may name are `name`, `split`, `file_path` and `label_path`.

    Raises:
        DataError, FileError: nothing there, or two images of one name.
        SettingError: an unknown layout or column.
    """
    rows = []
    for case in find_cases(root, layout, options=options):
        row = _listed(case)
        row.columns = {
            "name": row.name,
            "split": case.split,
            "file_path": str(row.image),
            "label_path": None if row.label is None else str(row.label),
        }
        for criterion in criteria:
            if criterion.key not in row.columns:
                raise SettingError(
                    f"selection: a folder has no column {criterion.key!r} (columns: {', '.join(row.columns)})"
                )
        if all(criterion.holds(row.columns[criterion.key]) for criterion in criteria):
            row.columns = {"split": case.split}  # the rest is stored by itself
            rows.append(row)
    base = root if root.is_dir() and not is_image(root) else root.parent
    return Source(len(rows), iter(rows), base, str(root))


def _listed(case: Case) -> Listed:
    options = dict(case.options)
    shared = {key: value for key, value in options.items() if key == "ndim"}
    if case.instances is not None:
        return Listed(case.name, case.image, case.instances, case.labels, options, shared)
    inside = _inside(case.image)
    if "raw" in inside:
        options.setdefault("dataset", inside["raw"])
    if "label" not in inside:
        return Listed(case.name, case.image, options=options)
    return Listed(case.name, case.image, case.image, None, options, shared | {"dataset": inside["label"]})


def _inside(path: Path) -> dict[str, str]:
    """Names of the image and of the labels in a container, as `raw` and `label`, where it has them by these names."""
    if path.suffix.lower() in (".h5", ".hdf5", ".hdf"):
        import h5py

        with guarded(path), h5py.File(path, "r") as file:
            names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
    elif path.is_dir():
        listing = _zarr_labels(path)
        if listing:
            return {"label": f"labels/{listing[0]}"}
        names = sorted(item.name for item in path.iterdir() if item.is_dir())
    else:
        return {}
    found = {}
    for role, known in (("raw", _RAW), ("label", _LABEL)):
        name = next((name for name in known if name in names), None)
        if name is not None:
            found[role] = name
    return found if path.suffix.lower() in (".h5", ".hdf5", ".hdf") or "raw" in found else {}


def _zarr_labels(path: Path) -> list[str]:
    """Label images that an OME-Zarr lists (`labels` in the attributes of its group `labels`)."""
    for marker in ("zarr.json", ".zattrs"):
        file = path / "labels" / marker
        if file.is_file():
            try:
                document = json.loads(file.read_text())
            except ValueError:
                continue
            attributes = document.get("attributes", {}) if marker == "zarr.json" else document
            listed = attributes.get("ome", attributes).get("labels")
            if isinstance(listed, list):
                return [str(name) for name in listed]
    return []


def find_objects(label: Stored, shape: Sequence[int], reader: CropReader, classes: Stored | None = None) -> Objects:
    """Box, volume and class of every instance of a label image, read in slabs.

    Args:
        label: one channel of ids, see `label_grid.whole_numbers`.
        shape: of the image that the labels belong to.
        classes: an image with a class per voxel: an instance has the class that most of its voxels have.

    Raises:
        DataError: ids below -1 or numbers that aren't whole.
    """
    from scipy import ndimage

    ndim = len(shape)
    low: dict[int, NDArray[np.int64]] = {}
    high: dict[int, NDArray[np.int64]] = {}
    volume: dict[int, int] = {}
    votes: dict[int, NDArray[np.int64]] = {}
    for window in _slabs(shape, label):
        ids = whole_numbers(reader.read(label, window)[0], label.path)
        present, places, counts = np.unique(ids, return_inverse=True, return_counts=True)
        compact = places.reshape(ids.shape).astype(np.int32) + (present[0] != 0)
        kinds = None if classes is None else class_numbers(reader.read(classes, window)[0], classes.path)
        corner = np.array([part.start for part in window])
        found = [int(number) for number in present if number]
        for number, parts in zip(found, ndimage.find_objects(compact), strict=True):
            first = corner + [part.start for part in parts]
            last = corner + [part.stop for part in parts]
            low[number] = np.minimum(low.get(number, first), first)
            high[number] = np.maximum(high.get(number, last), last)
        for number, count in zip(present.tolist(), counts.tolist(), strict=True):
            volume[number] = volume.get(number, 0) + count
        if kinds is not None and found:
            limit = int(kinds.max()) + 1
            table = np.bincount(compact.ravel() * limit + kinds.ravel(), minlength=(len(found) + 1) * limit)
            for number, row in zip(found, table.reshape(-1, limit)[1:], strict=True):
                seen = votes.get(number, np.zeros(0, np.int64))
                votes[number] = np.pad(row, (0, max(0, len(seen) - limit)))
                votes[number][: len(seen)] += seen
    instance = id_array(sorted(low))
    boxes = np.zeros((len(instance), 2 * ndim))
    for row, number in zip(boxes, instance.tolist(), strict=True):
        row[:ndim], row[ndim:] = low[number] - 0.5, high[number] - 0.5
    return Objects(
        instance,
        boxes,
        np.array([volume[number] for number in instance.tolist()], np.float64),
        np.array([_majority(votes.get(number)) for number in instance.tolist()], np.int64),
    )


def _majority(votes: NDArray[np.int64] | None) -> int:
    return 1 if votes is None or len(votes) < 2 else int(votes[1:].argmax()) + 1


def _slabs(shape: Sequence[int], stored: Stored) -> Iterator[tuple[slice, ...]]:
    """Windows along the first axis; the whole image where a window costs as much as all of it."""
    step = max(1, _SLAB // max(1, prod(shape[1:])))
    step = shape[0] if stored.kind == "other" else step if step < 64 else step // 64 * 64
    for start in range(0, shape[0], step):
        yield (slice(start, min(start + step, shape[0])), *(slice(0, size) for size in shape[1:]))


def intensities(stored: Stored, shape: Sequence[int], reader: CropReader) -> list[dict[str, Any]]:
    """Mean, deviation and `QUANTILES` of each channel, over all voxels or over some blocks.

    Up to 16 M voxels all count; of more, 64 blocks of up to 64 voxels a side, drawn with a fixed seed. What
    isn't finite doesn't count.
    """
    if prod(shape) * stored.channels <= _SAMPLE or stored.kind == "other":
        blocks = [reader.read(stored, tuple(slice(0, size) for size in shape)).reshape(stored.channels, -1)]
    else:
        corners = [range(0, size, 64) for size in shape]
        count = prod(len(axis) for axis in corners)
        blocks = []
        for number in sorted(np.random.default_rng(0).choice(count, min(count, 64), replace=False).tolist()):
            place = np.unravel_index(number, [len(axis) for axis in corners])
            window = tuple(
                slice(axis[step], min(axis[step] + 64, size))
                for axis, step, size in zip(corners, place, shape, strict=True)
            )
            blocks.append(reader.read(stored, window).reshape(stored.channels, -1))
    return [_summary(np.concatenate(list(parts))) for parts in zip(*blocks, strict=True)]


def _summary(values: NDArray[Any]) -> dict[str, Any]:
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not values.size:
        return {"mean": 0.0, "deviation": 0.0, "quantiles": [0.0] * len(QUANTILES)}
    quantiles = np.percentile(values, QUANTILES)
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "deviation": float(values.std(dtype=np.float64)),
        "quantiles": [float(value) for value in quantiles],
    }

"""The files that `prepare` writes for slices and shapes: npz without pickle, whole or not at all."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.atomic import replacing
from voxelry.core.errors import DataError, FileError, VoxelryError
from voxelry.core.guard import guarded
from voxelry.core.space import Space
from voxelry.data.slices.cut import SliceSample, array_axis
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.pointmaps import PointmapNormaliser
from voxelry.ops.sdf import decode_int8, encode_int8

__all__ = [
    "bytes_digest",
    "nifti_affine",
    "pointmap_range",
    "read_class_map",
    "read_full_sdf",
    "read_sdf",
    "read_slice_file",
    "sdf_codes",
    "write_full_sdf",
    "write_sdf",
    "write_slice_file",
]

_SLICE_KEYS = ("image", "mask", "pointmap", "affine", "slice_idx", "gt_sdf_path", "axis", "plane_affine", "label")
SdfCodes = tuple[NDArray[np.int8], tuple[int, ...]]

_AGAIN = "run voxelry prepare again to make it anew"


def bytes_digest(path: Path) -> str:
    """BLAKE2b of all bytes of a file; `data.crops.digest` is of images that may be too large to be read whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def nifti_affine(space: Space) -> NDArray[np.float64]:
    """The affine `(4, 4)` of a volume as NIfTI has it: index (i, j, k) = (column, row, plane) to world mm."""
    return np.vstack([space.affine[:3, [2, 1, 0, 3]], [0.0, 0.0, 0.0, 1.0]])


def write_slice_file(
    path: Path, sample: SliceSample, *, sdf_path: str, mesh_path: str = "", labels: Tensor | None = None
) -> Path:
    """One slice as npz.

    Keys: `image (C, H, W)` float32; `mask (H, W)` bool; `pointmap (3, H, W)` float32 world mm, NaN outside of the
    mask; `affine (4, 4)`, the volume's as NIfTI has it; `axis`, the world axis 0, 1, 2 (x, y, z) that the slice is
    perpendicular to, and `slice_idx`, its voxel on it, both -1 for an oblique slice; `plane_affine (4, 3)`,
    (row, column, 1) to world mm; `click (2,)` row and column, NaN for none; `label`; `volume_shape (3,)` in array
    order; `pointmap_scale (3,)` and `pointmap_shift (3,)` mm, with which `(pointmap - shift) / scale` has its median
    at 0 and a mean distance of 1 from it (`PointmapNormaliser.of_points`); `labels (H, W)`, all classes on the plane;
    `gt_sdf_path` and `gt_mesh_path`, the files of the true distances and surface, relative to the folder that was
    prepared, empty where there is none.
    """
    volume = sample.volume_space
    if volume is None or sample.mask is None or sample.pointmap is None:
        raise DataError(f"{sample.name}: expected a slice of a volume, with mask and pointmap, to write to {path}")
    shift, scale = pointmap_range(sample.pointmap, max(sample.space.spacing))
    world = [number for number in range(3) if array_axis(volume, number) == sample.axis]
    with replacing(path) as place, place.open("wb") as file:
        np.savez_compressed(
            file,
            image=sample.image.numpy().astype(np.float32),
            mask=sample.mask.numpy(),
            pointmap=sample.pointmap.numpy().astype(np.float32),
            affine=nifti_affine(volume),
            axis=np.array(world[0] if world else -1),
            slice_idx=np.array(-1 if sample.slice_idx is None else sample.slice_idx),
            plane_affine=sample.space.affine,
            click=np.full(2, np.nan, np.float32) if sample.click is None else sample.click.numpy(),
            label=np.array(sample.label),
            volume_shape=np.array(volume.shape),
            pointmap_scale=scale,
            pointmap_shift=shift,
            labels=(sample.mask.int() * sample.label if labels is None else labels).numpy().astype(np.uint16),
            gt_sdf_path=np.array(sdf_path),
            gt_mesh_path=np.array(mesh_path),
        )
    return path


def pointmap_range(points: Tensor, pixel: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Shift and scale of a pointmap's known points in mm, `(3,)` each; the scale of a single point is `pixel`."""
    known = points[:, torch.isfinite(points).all(dim=0)]
    if known.shape[1] == 1:
        return known[:, 0].numpy(), np.full(3, pixel, np.float32)
    found = PointmapNormaliser.of_points(points)
    return np.array(found.shift, np.float32), np.full(3, found.scale, np.float32)


def read_class_map(path: Path) -> Tensor:
    """All classes on the plane of a slice that `write_slice_file` wrote, `(H, W)` int64.

    Raises:
        FileError: as `read_slice_file`.
    """
    with _opened(path, ("labels",)) as data:
        return torch.from_numpy(data["labels"].astype(np.int64))


def read_full_sdf(path: Path, classes: Sequence[int]) -> NDArray[np.float32]:
    """The distances of some classes from a file of `write_sdf`, `(K, D, H, W)` mm on the volume's grid.

    An absent class is as far away everywhere as is told.

    Raises:
        FileError: as `read_sdf`.
    """
    with _opened(path, ("shape", "truncation")) as data:
        shape, truncation = tuple(int(size) for size in data["shape"]), float(data["truncation"])
    full = np.full((len(classes), *shape), truncation, dtype=np.float32)
    for place, label in enumerate(classes):
        if read_sdf(path, label) is None:
            continue
        with _opened(path, (f"sdf_{label}", f"start_{label}")) as data:
            codes, start = data[f"sdf_{label}"], data[f"start_{label}"].tolist()
        window = tuple(slice(low, low + size) for low, size in zip(start, codes.shape, strict=True))
        full[place][window] = decode_int8(codes, truncation)
    return full


def write_full_sdf(path: Path, space: Space, count: int, truncation: float) -> NDArray[np.float32]:
    """A file to fill, `(C, D, H, W)` float32 mm in array order on the volume's grid: `truncation` everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, *space.shape))
    array[...] = truncation
    return array


def read_slice_file(path: Path, *, name: str = "") -> SliceSample:
    """A slice that `write_slice_file` wrote.

    Raises:
        FileError: no such file, or one that is damaged or something else.
    """
    with _opened(path, _SLICE_KEYS) as data:
        image = torch.from_numpy(data["image"])
        shape = tuple(image.shape[1:])
        affine = np.asarray(data["affine"])[:, [2, 1, 0, 3]]
        volume = Space(tuple(int(size) for size in data["volume_shape"]), affine)
        axis, index = int(data["axis"]), int(data["slice_idx"])
        click = torch.from_numpy(data["click"])
        return SliceSample(
            image=image,
            space=Space(shape, data["plane_affine"]),
            name=name or path.stem,
            source=str(path),
            label=int(data["label"]),
            mask=torch.from_numpy(data["mask"]).bool(),
            click=click if bool(torch.isfinite(click).all()) else None,
            pointmap=torch.from_numpy(data["pointmap"]),
            axis=None if axis < 0 else array_axis(volume, axis),
            slice_idx=None if index < 0 else index,
            volume_space=volume,
        )


def write_sdf(
    path: Path, shapes: Mapping[int, SdfCodes], *, absent: Sequence[int], space: Space, truncation: float
) -> Path:
    """The signed distances of a case's classes, one byte a voxel of each class's own box.

    Arrays are in array order: plane, row, column, which run along z, y, x of the volume (S, A, R). Keys: `present`
    (class numbers), `absent`, `truncation` (mm), `shape (3,)` of the volume in array order, and its `affine (4, 4)` as
    NIfTI has it, from (column, row, plane) to world mm; of each present class K `sdf_K (d, h, w)` int8, distances
    times 127 / truncation, and `start_K (3,)`, the plane, row and column of its first voxel. Voxels below 0 are
    those that the label map gives the class, and none is 0; beyond the box there is `truncation`.

    Args:
        shapes: what `sdf_codes` made of each class.
        absent: classes that the case doesn't have.
        space: the volume's grid.
        truncation: mm beyond which distances are clipped; it is also what lies outside of the boxes.
    """
    arrays: dict[str, Any] = {
        "present": np.array([*shapes], dtype=np.int64),
        "absent": np.array([*absent], dtype=np.int64),
        "truncation": np.array(float(truncation)),
        "affine": nifti_affine(space),
        "shape": np.array(space.shape),
    }
    for label, (codes, start) in shapes.items():
        arrays |= {f"sdf_{label}": codes, f"start_{label}": np.array(start, dtype=np.int64)}
    with replacing(path) as place, place.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def sdf_codes(distances: NDArray[np.float32], start: Sequence[int], truncation: float) -> SdfCodes:
    """Distances in mm as bytes, and the first voxel of their box; none is 0, so a sign tells inside from outside."""
    codes = encode_int8(distances, truncation)
    codes = np.where(codes == 0, np.where(distances < 0, -1, 1), codes).astype(np.int8)
    return codes, tuple(start)


def read_sdf(path: str | Path, label: int) -> OrganShape | None:
    """The shape of one class from a file of `write_sdf`; None where the case doesn't have it.

    Raises:
        FileError: no such file, a damaged one, or one that knows nothing of that class.
    """
    path = Path(path)
    with _opened(path, ("present", "absent", "truncation", "affine", "shape")) as data:
        if label in data["absent"]:
            return None
        if label not in data["present"]:
            known = sorted([*data["present"].tolist(), *data["absent"].tolist()])
            raise FileError(path, f"knows nothing of class {label}", f"it has classes {known}")
        volume = Space(tuple(int(size) for size in data["shape"]), np.asarray(data["affine"])[:, [2, 1, 0, 3]])
        codes = data[f"sdf_{label}"]
        truncation = float(data["truncation"])
        space = volume.crop(data[f"start_{label}"].tolist(), codes.shape)
        return OrganShape(decode_int8(codes, truncation).astype(np.float16), space, truncation)


@contextmanager
def _opened(path: Path, keys: tuple[str, ...]) -> Iterator[Any]:
    with guarded(path, "is damaged or no file of voxelry prepare"):
        try:
            # opened here, because numpy leaves a damaged file open
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                missing = [key for key in keys if key not in data.files]
                if missing:
                    raise FileError(path, f"has no {missing[0]}; expected a file of voxelry prepare")
                yield data
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, AttributeError) as error:
            if isinstance(error, VoxelryError):
                raise
            raise FileError(path, "is damaged", _AGAIN) from error

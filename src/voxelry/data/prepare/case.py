"""One case of `prepare`: read, checked, brought to its grid, and written with all that is made of it.

Shapes are made on the grid that the labels were drawn on, where their distances are exact, and read off the
isotropic grid; the new label map is where they are negative (shape-based interpolation, Raya & Udupa 1990, IEEE TMI
9(1), 32-42). Between thick slices that is smoother than the nearest voxel, and labels, distances and meshes agree.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.atomic import replacing
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.io import open_image, write_image
from voxelry.data.io.meshes import write_mesh
from voxelry.data.label_grid import Reference, class_numbers, open_labels
from voxelry.data.layouts import Case
from voxelry.data.organ_shape import OrganShape
from voxelry.data.pointmaps import masked_pointmap
from voxelry.data.prepare.files import digest, write_sdf, write_slice_file
from voxelry.data.prepare.modality import MODALITIES, ct_window, guess_modality, standardise
from voxelry.data.prepare.pairs import Pair
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.data.slice_choice import METHODS, choose_cuts
from voxelry.data.slices import draw_click
from voxelry.data.speckle import despeckle
from voxelry.ops.sdf import mask_window
from voxelry.ops.surface import extract_surface

__all__ = ["PrepareSettings", "is_prepared", "prepare_case"]

_VERSION = 1  # of what is written: raise it when the same settings give other values


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What is made of every case.

    Args:
        spacing: mm of the isotropic grid.
        classes: number of classes, 1 to `classes`; a larger label is an error. None: as many as `dataset.json` or
            the masks name, else whatever the labels hold.
        merge: classes that count as one: `[[1, 2]]` makes 1 and 2 the only class. Labels that aren't named
            become background.
        modality: `ct`, `mr`, `us`, or `auto` (by the layout, DICOM header or values).
        window: of CT, a name in `CT_WINDOWS` or (low, high) in Hounsfield units.
        axes: world axes that slices are perpendicular to: 0, 1, 2 for x, y, z.
        slices: `random`, `uniform`, `central`, `all` or `oblique`; see `choose_cuts`.
        slices_per_class: of each case, in all (`random`, `oblique`) or per axis (`uniform`).
        min_pixels: slices that show less of the organ are passed over.
        truncation: mm at which distances are clipped.
        meshes: whether PLY files are written.
        smooth: rounds of smoothing of meshes; it keeps their volume.
        channel: of images with several.
        seed: of random slices and clicks.

    Raises:
        SettingError: a value out of range.
    """

    spacing: float = 1.0
    classes: int | None = None
    merge: Sequence[Sequence[int]] | None = None
    modality: str = "auto"
    window: str | Sequence[float] = "default"
    axes: Sequence[int] = (0, 1, 2)
    slices: str = "random"
    slices_per_class: int = 8
    min_pixels: int = 9
    truncation: float = 20.0
    meshes: bool = True
    smooth: int = 10
    channel: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("spacing", "truncation", "slices_per_class"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.classes is not None and self.classes < 1:
            raise SettingError(f"classes: expected at least 1, got {self.classes}")
        if self.modality not in ("auto", *MODALITIES):
            raise SettingError(f"modality: expected auto or one of {', '.join(MODALITIES)}, got {self.modality!r}")
        if self.slices not in METHODS:
            raise SettingError(f"slices: expected one of {', '.join(METHODS)}, got {self.slices!r}")
        if not self.axes or not set(self.axes) <= {0, 1, 2}:
            raise SettingError(f"axes: expected some of 0, 1, 2 (x, y, z), got {list(self.axes)}")
        if self.merge is not None and (not self.merge or not all(group and min(group) > 0 for group in self.merge)):
            raise SettingError(f"merge: expected groups of class numbers from 1, got {self.merge}")
        ct_window(self.window)

    def plain(self) -> dict[str, Any]:
        """Plain values that can go to JSON."""
        values = asdict(self)
        values["axes"] = [int(axis) for axis in self.axes]
        values["merge"] = None if self.merge is None else [[int(label) for label in group] for group in self.merge]
        values["window"] = self.window if isinstance(self.window, str) else [float(end) for end in self.window]
        return values


class _Reader(VolumeDataset):
    """Image and labels of a pair, on one grid."""

    def pair(self, pair: Pair, settings: PrepareSettings) -> Sample:
        case = Case(pair.name, pair.image, labels=None)
        sample = self.read(case)
        if sample.ndim != len(sample.image.shape) - 1 or sample.image.ndim != 4:
            raise DataError(f"{pair.image}: an image of rank {sample.ndim}; expected a volume")
        if not 0 <= settings.channel < len(sample.image):
            raise DataError(f"{pair.image}: no channel {settings.channel}; it has {len(sample.image)}")
        labels = np.zeros(sample.space.shape, dtype=np.int64)
        reference = Reference.of_file(pair.image, {})
        for path, label in pair.labels:
            found = class_numbers(open_labels(path, reference).read(), path)
            if label == 0:
                labels = found
                break
            labels[(found > 0) & (labels == 0)] = label  # where masks overlap, the first class has it
        image = sample.image[settings.channel : settings.channel + 1]
        return sample.replace(image=image, labels=torch.from_numpy(labels), name=pair.name)


def prepare_case(pair: Pair, root: Path, settings: PrepareSettings) -> dict[str, Any]:
    """Make and write everything of one case under `root`, its record `cases/NAME.json` last.

    Returns:
        The record.

    Raises:
        FileError, DataError: unreadable, labels beyond `classes`, grids that differ, no foreground; one line.
    """
    sample = _Reader([Case(pair.name, pair.image)], need=()).pair(pair, settings)
    labels = _checked_labels(sample, pair, settings)
    target = Preprocess(spacing=settings.spacing, normalise=None).target(sample.space)
    modality = guess_modality(sample.image, _told_modality(pair, settings))
    image = sample.image
    if modality == "us":
        image = torch.from_numpy(despeckle(image.numpy()))
    moved = Preprocess(spacing=settings.spacing, normalise=None)(sample.replace(image=image, labels=None))
    image, standard = standardise(moved.image, modality, window=settings.window)

    files = {
        "volume": f"volumes/{pair.name}.nii.gz",
        "labels": f"labels/{pair.name}.nii.gz",
        "sdf": f"sdf/{pair.name}.npz",
    }
    classes = range(1, (settings.classes or int(labels.max())) + 1)
    shapes: dict[int, tuple[NDArray[np.float32], Space] | None] = {}
    volumes: dict[str, float | None] = {}
    label_map = np.zeros(target.shape, dtype=np.uint8 if len(classes) < 256 else np.uint16)
    deepest = np.zeros(target.shape, dtype=np.float32)
    voxel_ml = abs(float(np.linalg.det(sample.space.affine[:3, :3]))) / 1000
    for label in classes:
        mask = labels == label
        shapes[label] = _on_grid(mask, sample.space, target, settings.truncation)
        volumes[str(label)] = float(mask.sum()) * voxel_ml if shapes[label] is not None else None
        found = shapes[label]
        if found is not None:
            start = np.round(np.asarray(target.to_index(found[1].origin))).astype(int)
            window = tuple(slice(low, low + size) for low, size in zip(start, found[0].shape, strict=True))
            deeper = found[0] < deepest[window]
            label_map[window][deeper] = label
            deepest[window][deeper] = found[0][deeper]
    write_image(root / files["volume"], image.numpy(), target)
    write_image(root / files["labels"], label_map[None], target)
    write_sdf(root / files["sdf"], shapes, space=target, truncation=settings.truncation)
    meshes = _write_meshes(shapes, pair.name, root, settings)
    slices = _write_slices(image, label_map, target, pair.name, root, files["sdf"], settings)
    written = [*files.values(), *meshes.values(), *(entry["file"] for entry in slices)]
    record = {
        "name": pair.name,
        "split": pair.split,
        "source": str(pair.image),
        "modality": modality,
        "shift": standard.shift,
        "scale": standard.scale,
        **files,
        "meshes": meshes,
        "volumes_ml": volumes,
        "absent": [label for label, found in shapes.items() if found is None],
        "slices": slices,
        "identity": identity(pair, settings),
        "written": {name: [(root / name).stat().st_size, digest(root / name)] for name in written},
    }
    with replacing(_record_path(root, pair.name)) as place:
        place.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def is_prepared(pair: Pair, root: Path, settings: PrepareSettings) -> dict[str, Any] | None:
    """The record of a case that is there whole, made of the same files with the same settings; else None.

    Every file is read and compared with its digest, so a damaged one is found.
    """
    try:
        record: dict[str, Any] = json.loads(_record_path(root, pair.name).read_bytes())
        if record["identity"] != identity(pair, settings):
            return None
        for name, (size, known) in record["written"].items():
            path = root / name
            if path.stat().st_size != size or digest(path) != known:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def identity(pair: Pair, settings: PrepareSettings) -> dict[str, Any]:
    """What a case's files depend on: settings, version, and size and time of change of the sources."""
    stamps = []
    for path in pair.files:
        parts = sorted(path.iterdir()) if path.is_dir() else [path]
        stamps += [[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in parts if part.is_file()]
    labels = [[path.name, label] for path, label in pair.labels]
    about = {"version": _VERSION, "settings": settings.plain(), "files": stamps, "labels": labels}
    return json.loads(json.dumps({**about, "split": pair.split, "modality": pair.modality}))


def _record_path(root: Path, name: str) -> Path:
    return root / "cases" / f"{name}.json"


def _told_modality(pair: Pair, settings: PrepareSettings) -> str:
    if settings.modality != "auto":
        return settings.modality
    return pair.modality or str(open_image(pair.image).metadata.get("Modality", ""))


def _checked_labels(sample: Sample, pair: Pair, settings: PrepareSettings) -> NDArray[np.int64]:
    assert sample.labels is not None
    labels = sample.labels.numpy()
    where = pair.labels[0][0]
    values = np.unique(labels)
    if settings.merge is not None:
        merged = np.zeros_like(labels)
        for label, group in enumerate(settings.merge, start=1):
            merged[np.isin(labels, list(group))] = label
        labels, values = merged, np.unique(merged)
    if settings.classes is not None and values[-1] > settings.classes:
        raise DataError(
            f"{where}: label value {values[-1]}, but classes is {settings.classes}; expected 0 to {settings.classes}"
        )
    if values[-1] == 0:
        raise DataError(f"{where}: no foreground, every label is 0")
    return labels


def _on_grid(
    mask: NDArray[np.bool_], space: Space, target: Space, truncation: float
) -> tuple[NDArray[np.float32], Space] | None:
    """Distances on the part of `target` that the shape and its surroundings reach; None without a voxel there."""
    shape = OrganShape.of_mask(mask, space, truncation)
    if shape is None:
        return None
    low, high = shape.box
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    index = np.asarray(target.to_index(corners))
    margin = truncation / np.asarray(target.spacing)
    start = np.maximum(0, np.floor(index.min(axis=0) - margin)).astype(int)
    stop = np.minimum(target.shape, np.ceil(index.max(axis=0) + margin) + 1).astype(int)
    crop = target.crop(start.tolist(), (stop - start).tolist())
    distances = shape.on(crop, truncation)
    window = mask_window(distances < 0, margin)  # the box was that of a box: mostly larger than need be
    if window is None:
        return None
    part = crop.crop([side.start for side in window], [side.stop - side.start for side in window])
    return np.ascontiguousarray(distances[window]), part


def _write_meshes(
    shapes: dict[int, tuple[NDArray[np.float32], Space] | None], name: str, root: Path, settings: PrepareSettings
) -> dict[str, str]:
    files = {}
    for label, found in shapes.items():
        if settings.meshes and found is not None:
            mesh = extract_surface(found[0], found[1], smooth=settings.smooth)
            if not mesh.is_empty:
                files[str(label)] = f"meshes/{name}_{label}.ply"
                write_mesh(root / files[str(label)], mesh)
    return files


def _write_slices(
    image: torch.Tensor,
    labels: NDArray[np.integer],
    space: Space,
    name: str,
    root: Path,
    sdf_path: str,
    settings: PrepareSettings,
) -> list[dict[str, Any]]:
    shutil.rmtree(root / "slices" / name, ignore_errors=True)  # of an earlier run with other settings
    entries = []
    whole = torch.from_numpy(labels.astype(np.int64))
    for label in [int(value) for value in np.unique(labels) if value > 0]:
        generator = np.random.default_rng([settings.seed, zlib.crc32(name.encode()), label])
        cuts = choose_cuts(
            labels == label,
            space,
            method=settings.slices,
            axes=settings.axes,
            count=settings.slices_per_class,
            generator=generator,
            min_pixels=settings.min_pixels,
        )
        seen: set[tuple[int | None, int | None]] = set()
        for number, cut in enumerate(cuts):
            if cut.plane is None and (cut.axis, cut.index) in seen:
                continue  # an organ with fewer planes than were asked for
            seen.add((cut.axis, cut.index))
            sample = cut.take(image, whole, space, label=label, name=name, source=name)
            mask = sample.mask
            if mask is None or not mask.any():
                continue
            sample = replace(sample, click=draw_click(mask, generator), pointmap=masked_pointmap(sample.space, mask))
            place = f"oblique_{number:03d}" if cut.axis is None else f"{'xyz'[_world(space, cut.axis)]}_{cut.index:04d}"
            file = f"slices/{name}/class{label}_{place}.npz"
            write_slice_file(root / file, sample, sdf_path=sdf_path)
            axis = -1 if cut.axis is None else _world(space, cut.axis)
            entries.append({"file": file, "label": label, "axis": axis, "pixels": int(mask.sum())})
    return entries


def _world(space: Space, axis: int) -> int:
    return space.closest_axes()[axis][0]

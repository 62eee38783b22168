"""One case of `prepare`: read, checked, brought to its grid, and written with all that is made of it."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.atomic import replacing
from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.case import Case
from voxelry.data.prepare.files import bytes_digest, sdf_codes, write_full_sdf, write_sdf, write_slice_file
from voxelry.data.prepare.register import KINDS, write_transform
from voxelry.data.prepare.shapes import CaseLabels
from voxelry.data.prepare.template import Template
from voxelry.data.preprocess import Preprocess, move
from voxelry.data.preprocess.modality import MODALITIES, Standard, ct_window, guess_modality, standardise
from voxelry.data.preprocess.normalise import finite
from voxelry.data.preprocess.speckle import despeckle
from voxelry.data.sample import Sample
from voxelry.data.slices.augment import move_space
from voxelry.data.slices.choice import Choice, choose_cuts, method_name
from voxelry.data.slices.cut import draw_click, take_labels
from voxelry.data.slices.pointmaps import masked_pointmap
from voxelry.io import IMAGE_OPTIONS, open_image, write_image
from voxelry.io.images.image import split_dataset
from voxelry.io.meshes import write_mesh

__all__ = ["PrepareSettings", "is_prepared", "prepare_case"]

_VERSION = 2  # of what is written: raise it when the same settings give other values


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
        slices: `random_axis`, `uniform`, `central`, `all` or `oblique`; see `choose_cuts`.
        slices_per_class: of each case, in all (`random_axis`, `oblique`) or per axis (`uniform`).
        oblique: share of oblique slices, of `random_axis`.
        min_pixels: slices that show less of the organ are passed over.
        truncation: mm at which distances are clipped.
        meshes: whether PLY files are written.
        sdf: `boxes`, each class's distances on its own box; `full` writes `(C, D, H, W)` as well.
        register: file of a template that every scan is brought onto; volumes, labels, shapes and slices then lie on
            its grid, at `spacing`.
        transform: `rigid` or `affine`, see `prepare.register`.
        smooth: rounds of smoothing of meshes; it keeps their volume.
        channel: of images with several.
        options: what the images don't say, as `open_image` takes it; `label_dataset` names the labels' dataset or
            segments.
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
    slices: str = "random_axis"
    slices_per_class: int = 8
    oblique: float = 0.0
    min_pixels: int = 9
    truncation: float = 20.0
    meshes: bool = True
    sdf: str = "boxes"
    register: str | None = None
    transform: str = "rigid"
    smooth: int = 10
    channel: int = 0
    options: Mapping[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if strange := [name for name in self.options or {} if name not in (*IMAGE_OPTIONS, "label_dataset")]:
            raise SettingError(f"options: expected some of {', '.join(IMAGE_OPTIONS)}, label_dataset, got {strange[0]}")
        for name in ("spacing", "truncation", "slices_per_class"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.classes is not None and self.classes < 1:
            raise SettingError(f"classes: expected at least 1, got {self.classes}")
        if self.modality not in ("auto", *MODALITIES):
            raise SettingError(f"modality: expected auto or one of {', '.join(MODALITIES)}, got {self.modality!r}")
        object.__setattr__(self, "slices", method_name(self.slices, "slices"))
        check_choice("sdf", self.sdf, ("boxes", "full"))
        check_choice("transform", self.transform, KINDS)
        if not 0 <= self.oblique <= 1:
            raise SettingError(f"oblique: expected a share from 0 to 1, got {self.oblique}")
        if not self.axes or not set(self.axes) <= {0, 1, 2}:
            raise SettingError(f"axes: expected some of 0, 1, 2 (x, y, z), got {list(self.axes)}")
        if self.merge is not None and (not self.merge or not all(group and min(group) > 0 for group in self.merge)):
            raise SettingError(f"merge: expected groups of class numbers from 1, got {self.merge}")
        merged = [label for group in self.merge or () for label in group]
        if twice := [label for label in merged if merged.count(label) > 1]:
            raise SettingError(f"merge: expected every class number once, got {twice[0]} more often")
        ct_window(self.window)

    def plain(self) -> dict[str, Any]:
        """Plain values that can go to JSON."""
        values = asdict(self)
        values["axes"] = [int(axis) for axis in self.axes]
        values["merge"] = None if self.merge is None else [[int(label) for label in group] for group in self.merge]
        values["window"] = self.window if isinstance(self.window, str) else [float(end) for end in self.window]
        if not self.options:  # what was prepared before there were any is still the same
            del values["options"]
        return values


def _read(case: Case, settings: PrepareSettings) -> Sample:
    """Image and labels of a case, on one grid."""
    sample = VolumeDataset([case], need=("labels",)).read(case)
    if sample.image.ndim != 4:
        raise DataError(f"{case.image}: an image of rank {sample.ndim}; expected a volume")
    if not 0 <= settings.channel < len(sample.image):
        raise DataError(f"{case.image}: no channel {settings.channel}; it has {len(sample.image)}")
    return sample.replace(image=sample.image[settings.channel : settings.channel + 1])


def prepare_case(case: Case, root: Path, settings: PrepareSettings, names: dict[int, str]) -> dict[str, Any]:
    """Make and write everything of one case under `root`, its record `cases/NAME.json` last.

    Args:
        case: its files.
        root: the folder to fill.
        settings: what is made.
        names: what the classes are called, for warnings.

    Returns:
        The record.

    Raises:
        FileError, DataError: unreadable, an image without contrast, labels beyond `classes`, grids that differ, no
            foreground; one line.
    """
    sample = _read(case, settings)
    labels = _checked_labels(sample, case, settings)
    sample, target, home = _in_frame(sample, settings)
    image, standard = _standard_image(sample, case, target, settings)
    files = {
        "volume": f"volumes/{case.name}.nii.gz",
        "labels": f"labels/{case.name}.nii.gz",
        "sdf": f"sdf/{case.name}.npz",
    }
    found = CaseLabels(labels, sample.space, target, settings.classes or int(labels.max()))
    if not found.present:
        raise DataError(f"{case.labels}: {found.faults(names)[0]}")
    write_image(root / files["volume"], image.numpy(), target, description=standard.note)
    write_image(root / files["labels"], found.map[None], target)
    if home is not None:
        files["transform"] = f"transforms/{case.name}.tfm"
        write_transform(root / files["transform"], np.asarray(home["matrix"]))
    if settings.sdf == "full":
        files["sdf_full"] = f"sdf/{case.name}_sdf.npy"
    meshes, absent, enclosed = _write_shapes(found, case.name, files, root, settings)
    slices = _write_slices(image, found.map, target, case.name, root, {**files, **meshes}, settings)
    written = [*files.values(), *meshes.values(), *(entry["file"] for entry in slices)]
    _remove_unnamed(root, case.name, written)
    record = {
        "name": case.name,
        "split": case.split,
        "source": str(case.image),
        "modality": standard.modality,
        "shift": standard.shift,
        "scale": standard.scale,
        **files,
        "register": home,
        "meshes": meshes,
        "volumes_ml": _volumes(found.written_ml),
        "drawn_volumes_ml": _volumes(found.drawn_ml),
        "absent": absent,
        "warnings": [f"{case.name}: {line}" for line in found.faults(names) + found.thin(enclosed, names)],
        "slices": slices,
        "identity": identity(case, settings),
        "written": {name: [(root / name).stat().st_size, bytes_digest(root / name)] for name in written},
    }
    with replacing(_record_path(root, case.name)) as place:
        place.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def is_prepared(case: Case, root: Path, settings: PrepareSettings) -> dict[str, Any] | None:
    """The record of a case that is there whole, made of the same files with the same settings; else None.

    Every file is read and compared with its digest, so a damaged one is found.
    """
    try:
        record: dict[str, Any] = json.loads(_record_path(root, case.name).read_bytes())
        if record["identity"] != identity(case, settings):
            return None
        for name, (size, known) in record["written"].items():
            path = root / name
            if path.stat().st_size != size or bytes_digest(path) != known:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def identity(case: Case, settings: PrepareSettings) -> dict[str, Any]:
    """What a case's files depend on: settings, version, and size and time of change of the sources."""
    stamps = []
    template = [] if settings.register is None else [Path(settings.register)]
    sources = [split_dataset(path)[0] for paths in _used(case).values() for path in paths]
    for path in [*sources, *template]:
        parts = sorted(path.iterdir()) if path.is_dir() else [path]
        stamps += [[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in parts if part.is_file()]
    labels = [[path.name, 0] for path in _used(case)["labels"]]
    about = {"version": _VERSION, "settings": settings.plain(), "files": stamps, "labels": labels}
    return json.loads(json.dumps({**about, "split": case.split, "modality": case.modality}))


def _used(case: Case) -> dict[str, tuple[Path, ...]]:
    """The files that are read of a case."""
    return {use: case.files[use] for use in ("image", "labels")}


def _record_path(root: Path, name: str) -> Path:
    return root / "cases" / f"{name}.json"


def _remove_unnamed(root: Path, name: str, written: Sequence[str]) -> None:
    """Take away what an earlier run with other settings wrote of a case, and this one doesn't write."""
    try:
        earlier = json.loads(_record_path(root, name).read_bytes())["written"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for place in {*earlier} - {*written}:
        path = root / place
        if path.resolve().is_relative_to(root.resolve()):
            path.unlink(missing_ok=True)


def _told_modality(case: Case, settings: PrepareSettings) -> str:
    if settings.modality != "auto":
        return settings.modality
    return case.modality or str(open_image(case.image, **case.options).metadata.get("Modality", ""))


def _checked_labels(sample: Sample, case: Case, settings: PrepareSettings) -> NDArray[np.int64]:
    assert sample.labels is not None
    labels = sample.labels.numpy()
    where = case.labels
    values = np.unique(labels)
    if settings.merge is not None:
        merged = np.zeros_like(labels)
        for label, group in enumerate(settings.merge, start=1):
            merged[np.isin(labels, list(group))] = label
        labels, values = merged, np.unique(merged)
    if settings.classes is not None and values[-1] > settings.classes:
        raise DataError(
            f"{where}: label value {values[-1]}, but classes is {settings.classes}; expected 0 to {settings.classes} "
            f"(leave --classes out for all, or name those that are wanted: --merge 1 --merge {values[-1]})"
        )
    if values[-1] == 0:
        raise DataError(f"{where}: no foreground, every label is 0")
    return labels


def _in_frame(sample: Sample, settings: PrepareSettings) -> tuple[Sample, Space, dict[str, Any] | None]:
    """The case in the template's frame or else its own, the isotropic grid there, and how it came there."""
    if settings.register is None:
        return sample, Preprocess(spacing=settings.spacing, normalise=None).target(sample.space), None
    template = Template.read(Path(settings.register), settings.transform, settings.spacing)
    motion = template.motion(sample)
    home = {
        "template": settings.register,
        "transform": settings.transform,
        "matrix": motion.tolist(),
        "shape": list(sample.space.shape),
        "affine": sample.space.affine.tolist(),
    }
    return sample.replace(space=move_space(sample.space, motion)), template.grid, home


def _standard_image(
    sample: Sample, case: Case, target: Space, settings: PrepareSettings
) -> tuple[torch.Tensor, Standard]:
    """The image on the new grid with the intensities of its modality.

    Raises:
        DataError: there is nothing to see in it.
    """
    image = sample.image
    known = image[torch.isfinite(image)]
    if not known.numel():
        raise DataError(f"{case.image}: no voxel has a number (all are NaN or infinite)")
    if float(known.min()) == float(known.max()):
        raise DataError(f"{case.image}: every voxel is {float(known.min()):g}; expected an image with contrast")
    image = finite(image)
    if prod(target.shape) == 1 < prod(sample.space.shape):
        extent, edge = (" x ".join(f"{side:.3g}" for side in one) for one in (sample.space.extent, target.spacing))
        raise DataError(
            f"{case.image}: an image of {extent} mm is a single voxel of {edge} mm; give a smaller --spacing, such as "
            f"{min(sample.space.spacing):.3g}"
        )
    modality = guess_modality(image, _told_modality(case, settings))
    if modality == "us":
        image = torch.from_numpy(despeckle(image.numpy()))
    plain = Sample(image, sample.space, sample.name, str(case.image))
    image, standard = standardise(move(plain, target).image, modality, window=settings.window)
    if float(image.min()) == float(image.max()):
        low, high = ct_window(settings.window)
        raise DataError(
            f"{case.image}: no contrast from {low:g} to {high:g} Hounsfield units, its values go from "
            f"{float(known.min()):g} to {float(known.max()):g} (choose another --window, or --modality mr)"
        )
    return image, standard


def _volumes(ml: NDArray[np.floating]) -> dict[str, float | None]:
    return {str(label): float(volume) if volume > 0 else None for label, volume in enumerate(ml, start=1)}


def _write_shapes(
    labels: CaseLabels, name: str, files: Mapping[str, str], root: Path, settings: PrepareSettings
) -> tuple[dict[str, str], list[int], dict[int, float]]:
    """Write distances and surfaces; the surfaces' files by class, the classes that aren't there, the surfaces' ml."""
    meshes, codes, enclosed = {}, {}, {}
    count = len(labels.written_ml)
    with ExitStack() as stack:
        full = None
        if "sdf_full" in files:
            place = stack.enter_context(replacing(root / files["sdf_full"]))
            full = write_full_sdf(place, labels.target, count, settings.truncation)
        for found in labels.shapes(settings.truncation):
            codes[found.label] = sdf_codes(found.distances, found.start, settings.truncation)
            mesh = found.surface(settings.smooth) if settings.meshes else None
            if mesh is not None and not mesh.is_empty:
                meshes[str(found.label)] = f"meshes/{name}_{found.label}.ply"
                write_mesh(root / meshes[str(found.label)], mesh)
                enclosed[found.label] = mesh.volume_ml
            if full is not None:
                window = tuple(slice(a, a + n) for a, n in zip(found.start, found.distances.shape, strict=True))
                full[found.label - 1][window] = found.distances
    absent = [label for label in range(1, count + 1) if label not in codes]
    write_sdf(root / files["sdf"], codes, absent=absent, space=labels.target, truncation=settings.truncation)
    return meshes, absent, enclosed


def _write_slices(
    image: torch.Tensor,
    labels: NDArray[np.integer],
    space: Space,
    name: str,
    root: Path,
    files: Mapping[str, str],
    settings: PrepareSettings,
) -> list[dict[str, Any]]:
    """Write the slices of every class; `files` of the case by what they are, and of meshes by their class."""
    shutil.rmtree(root / "slices" / name, ignore_errors=True)  # of an earlier run with other settings
    choice = Choice(
        method=settings.slices,
        axes=settings.axes,
        count=settings.slices_per_class,
        oblique=settings.oblique,
        min_pixels=settings.min_pixels,
    )
    entries = []
    whole = torch.from_numpy(labels.astype(np.int64))
    for label in [int(value) for value in np.unique(labels) if value > 0]:
        generator = np.random.default_rng([settings.seed, zlib.crc32(name.encode()), label])
        cuts = choose_cuts(labels == label, space, choice, generator)
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
            write_slice_file(
                root / file,
                sample,
                sdf_path=files.get("sdf_full", files["sdf"]),
                mesh_path=files.get(str(label), ""),
                labels=take_labels(whole, space, axis=cut.axis, index=cut.index, plane=cut.plane),
            )
            axis = -1 if cut.axis is None else _world(space, cut.axis)
            index = number if cut.index is None else cut.index
            entries.append({"file": file, "label": label, "axis": axis, "index": index, "pixels": int(mask.sum())})
    return entries


def _world(space: Space, axis: int) -> int:
    return space.closest_axes()[axis][0]

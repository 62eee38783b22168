"""From a click on a file to a shape in files: the prompt of a user, and what is written for one.

model = voxelry.load("runs/liver/bundle")
shape = model.reconstruct("scan.nii.gz", click=(12.0, -40.5, 88.0))
shape.mesh, shape.mask(), shape.volume_ml, shape.on_slice_mm
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from voxelry.bundle.model import Model
from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.label_grid import Reference, open_labels, whole_numbers
from voxelry.data.layouts.files import case_name
from voxelry.data.sample import Sample
from voxelry.data.slices.augment import move_slice
from voxelry.data.slices.case import ViewSettings, build_case, collate_slices
from voxelry.data.slices.cut import (
    PLANE_NAMES,
    SliceSample,
    array_axis,
    check_click,
    oblique_plane,
    read_slice,
    regrid,
    take_slice,
)
from voxelry.data.slices.pointmaps import pointmap_plane
from voxelry.data.slices.upright import upright
from voxelry.io import open_image, write_image
from voxelry.io.meshes import write_mesh
from voxelry.ops.surface import extract_surface, volume_mismatch
from voxelry.tasks.recipe import make_folder
from voxelry.tasks.reconstruct.placed import Placed, place
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.task import ReconstructTask

__all__ = ["Asked", "reconstruct", "write_reconstruction"]

log = logging.getLogger("voxelry")

SAMPLING = ("samples", "steps", "sampler")
"""Options that say how hypotheses are drawn."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is pointed at.

    Attributes:
        click: world x, y, z in mm, or several of them, a slice each. On a single image also column and row in pixels;
            None with its mask, whose pixel farthest from the border it is then.
        plane: `axial` (the default), `coronal` or `sagittal` for the slice of voxels through the click, or the normal
            x, y, z of an oblique one; one for all clicks or one for each. A single image has none.
        mask: the organ on the slices, as far as it is known: a label volume on the volume's grid (in any order of axes
            where it is a file), or an image of the slice's size with `slice`; what isn't 0 (or -1) is organ.
        slice: there is one image of rank 2 and no volume; true, or that image's file once more.
        spacing: mm per pixel of a single image, or of the voxels, instead of the file's own.
        pointmap: where the pixels of a single image lie, instead of what its file says: world x, y, z in mm (RAS) of
            each, `(3, H, W)` or `(H, W, 3)`, NaN where unknown; an array or a file of one.
        label: the organ, one of the model's; may be left out where it has only one.
    """

    click: ArrayLike | Sequence[ArrayLike] | None = None
    plane: str | ArrayLike | Sequence[str | ArrayLike] | None = None
    mask: str | PathLike[str] | NDArray[Any] | None = None
    slice: bool | str | PathLike[str] = False
    spacing: float | Sequence[float] | None = None
    pointmap: str | PathLike[str] | NDArray[Any] | None = None
    label: int | None = None


def reconstruct(
    model: Model[ReconstructTask],
    image: str | PathLike[str] | NDArray[Any] | Sample,
    *,
    space: Space | None = None,
    **options: Any,
) -> ReconstructPrediction:
    """The organ that is clicked on.

    Args:
        model: a bundle of the reconstruction task.
        image: a volume: file, array `(C, D, H, W)` or sample. With `slice` the file of a single image. For a volume
            that was registered when it was prepared, clicks and mask are in its own frame, and the answer is in the
            patient's. A model that was trained on such volumes registers any other to its template by itself; clicks,
            mask and answer are in the patient's frame then, and planes lie across the template's axes.
        space: where an array lies.
        options: of `Asked`; for the file's reader; and of a model that draws hypotheses `samples`, their number,
            `steps` and `sampler`.

    Raises:
        DataError: a click outside of the volume or in air, a mask that isn't on the image's grid or is empty, a slice
            without spacing, an image that isn't the model's.
        FileError: a file can't be read.
        SettingError: a plane or label that there isn't, or samples of a model that doesn't draw any.
    """
    task = model.task
    sampling = {name: options.pop(name) for name in SAMPLING if options.get(name) is not None}
    asked = Asked(**{field.name: options.pop(field.name) for field in fields(Asked) if field.name in options})
    organ = _organ(task, asked.label)
    if asked.click is None and (not asked.slice or asked.mask is None):
        raise SettingError(
            "click: expected x, y, z in RAS mm inside the organ; only a single image's mask says it, too"
        )
    points = np.empty((0, 2)) if asked.click is None else np.atleast_2d(np.asarray(asked.click, dtype=np.float64))
    if len(points) > task.slices:
        raise SettingError(f"click: the model takes up to {task.slices} slices, got {len(points)}")
    turned, placed = np.eye(4), None
    if asked.slice:
        slices = [_lone(model, image, points, asked, organ)]
    elif asked.pointmap is not None:
        raise SettingError("pointmap: expected with slice; a volume says itself where its voxels lie")
    else:
        placed = _placed(model, image, points, asked, space, options)
        slices, turned = _cuts(placed, points, "axial" if asked.plane is None else asked.plane, organ)
    case = build_case(
        slices,
        edge=task.edges[task.organs.index(organ)],
        views=ViewSettings(image_size=task.image_size, view=task.view),
        give_mask=asked.mask is not None,
    )
    batch = collate_slices([case]).to(model.device)
    with torch.inference_mode():
        found: ReconstructPrediction = task.predict(batch, **sampling)[0]
    if placed is None:
        return found
    back, grid = placed.home  # what is written goes onto the grid of the file, not onto that of the network
    return found.moved(back @ np.linalg.inv(turned), grid)


def _lone(
    model: Model[ReconstructTask], image: Any, points: NDArray[np.float64], asked: Asked, organ: tuple[int, ...]
) -> SliceSample:
    """The slice that a single image is."""
    if not isinstance(image, str | PathLike):
        raise SettingError("slice: expected the file of an image")
    if asked.plane is not None:
        raise SettingError(f"plane: expected none with a single image, which is one itself, got {asked.plane!r}")
    if model.bundle.template is not None:
        raise DataError(
            f"{image}: a single image can't be registered to the template that the model was trained with; give "
            "the volume that it is a slice of, without --slice"
        )
    return _single(model, as_path(image), points, asked, organ[0])


def _placed(
    model: Model[ReconstructTask],
    image: Any,
    points: NDArray[np.float64],
    asked: Asked,
    space: Space | None,
    options: dict[str, Any],
) -> Placed:
    """A volume with its mask, in the frame of the training."""
    reading = options if asked.spacing is None else {**options, "spacing": asked.spacing}
    sample = model.sample(image, space, **reading)
    for point in points:
        check_click(sample.image, sample.space, point, source=sample.source)
    if asked.mask is not None:
        on = _reference(model, image, sample, space, reading)
        sample = sample.replace(labels=_mask_on(asked.mask, sample.space, on))
    return place(model.bundle, sample, as_path(image) if isinstance(image, str | PathLike) else None)


def write_reconstruction(prediction: ReconstructPrediction, folder: Path, format: str = "ply") -> Path:
    """Write a mesh and, beside it, distances, numbers and, where there was a volume, its voxels.

    `NAME.ply` (or another format of meshes), `NAME.nii.gz` (the organ's label on the volume's grid),
    `NAME_sdf.nii.gz` (mm, on the frame), `NAME.json`; all in world mm. With hypotheses each of them too, as
    `NAME_1.ply` and `NAME_sdf_1.nii.gz` and so on, and how far they spread at each vertex of `NAME.ply`: as its
    property `spread_mm`, which other formats have no place for, and in `NAME_spread.csv` (`x,y,z,spread_mm`), the
    vertices in the mesh's order. A hypothesis without any inside has no mesh.

    Raises:
        DataError: nothing was found.
        FileError: the folder can't be written.
    """
    if prediction.is_empty:
        raise DataError(f"{prediction.name}: no shape was found at the click")
    folder, name = make_folder(folder), prediction.name
    if prediction.space.ndim == 3:
        inside = prediction.mask()
        whole = float(np.count_nonzero(inside) * abs(np.linalg.det(prediction.space.affine[:3, :3])) / 1000)
        if line := volume_mismatch(f"{name}, label {prediction.label}", prediction.volume_ml, whole):
            log.warning("%s", line)
        voxels = inside.astype(np.uint8 if prediction.label < 256 else np.int32) * prediction.label
        write_image(folder / f"{name}.nii.gz", voxels[None], prediction.space)
    write_image(folder / f"{name}_sdf.nii.gz", prediction.sdf[None], prediction.frame)
    for number, other in enumerate(prediction.hypotheses, start=1):
        write_image(folder / f"{name}_sdf_{number}.nii.gz", other[None], prediction.frame)
        surface = extract_surface(other, prediction.frame)
        if not surface.is_empty:
            write_mesh(folder / f"{name}_{number}.{format}", surface)
    record = {
        "label": prediction.label,
        "clicks_mm": prediction.clicks.tolist(),
        "volume_ml": prediction.volume_ml,
        "on_slice_mm": prediction.on_slice_mm,
        "on_slice_of": "predicted mask" if prediction.given is None else "given mask",
        "hypotheses": len(prediction.hypotheses),
    }
    if prediction.pose:
        record["pose"] = {name: list(each) for name, each in prediction.pose.items()}
    spread = prediction.mesh.values.get("spread_mm")
    if spread is not None:
        volumes = [extract_surface(other, prediction.frame).volume_ml for other in prediction.hypotheses]
        record |= {"spread_mm": float(spread.mean()), "volumes_ml": volumes}
        rows = np.column_stack((prediction.mesh.vertices, spread))
        lines = ["x,y,z,spread_mm", *(",".join(f"{value:.4f}" for value in row) for row in rows)]
        _write_text(folder / f"{name}_spread.csv", "\n".join(lines) + "\n")
    _write_text(folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
    return write_mesh(folder / f"{name}.{format}", prediction.mesh)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(path, f"can't be written: {error.strerror or error}") from error


def _organ(task: ReconstructTask, label: int | None) -> tuple[int, ...]:
    organs = task.organs
    if label is None and len(organs) == 1:
        return organs[0]
    for organ in sorted(organs, key=len):  # an organ of that value alone before one of which it is a part
        if label in organ:
            return organ
    known = ", ".join("+".join(map(str, organ)) for organ in organs)
    raise SettingError(f"label: expected one of the model's organs, {known}, got {label}")


def _reference(
    model: Model[ReconstructTask], image: Any, sample: Sample, space: Space | None, options: dict[str, Any]
) -> Reference:
    """What a mask of a volume must lie on: an array without a space doesn't say where it lies."""
    if isinstance(image, str | PathLike):
        return Reference.of_file(as_path(image), model.reading(as_path(image), options))
    return Reference(Path(sample.source), sample.space, isinstance(image, Sample) or space is not None)


def _cuts(
    placed: Placed,
    points: NDArray[np.float64],
    plane: Any,
    organ: tuple[int, ...],
) -> tuple[list[SliceSample], NDArray[np.float64]]:
    """The slices of a volume through the clicks, in the world turned `upright`, and that motion of it."""
    sample, prepared = placed.own, placed.prepared
    planes = [one if isinstance(one, str) else placed.normal(one) for one in _planes(plane, len(points))]
    motion = upright(prepared.space)
    slices = []
    for point, wanted in zip(placed.points(points), planes, strict=True):
        cut = _cut(prepared, point, wanted, min(prepared.space.spacing))
        if sample.labels is not None:
            cut = cut.replace(mask=_mask_of(sample, point, wanted, cut.space))
            if cut.mask is None or not bool(cut.mask.any()):
                raise DataError(
                    f"{sample.source}: the mask has no foreground on the {cut.plane} slice through the click"
                )
        at = torch.from_numpy(np.asarray(cut.space.to_index(point))).to(torch.float32)
        slices.append(move_slice(cut.replace(click=at, label=organ[0]), motion))
    return slices, motion


def _cut(sample: Sample, point: NDArray[np.float64], plane: str | NDArray[np.float64], step: float) -> SliceSample:
    """The slice of a volume through a point: of its voxels where the plane has a name, else of pixels of `step` mm."""
    where: dict[str, Any]
    if isinstance(plane, str):
        axis = array_axis(sample.space, PLANE_NAMES.index(plane))
        index = round(float(np.asarray(sample.space.to_index(point))[axis]))
        where = {"axis": axis, "index": int(np.clip(index, 0, sample.space.shape[axis] - 1))}
    else:
        side = math.ceil(float(np.linalg.norm(sample.space.extent)) / step)
        where = {"plane": oblique_plane(point, plane, spacing=step, shape=side)}
    return take_slice(
        sample.image, sample.labels, sample.space, label=1, name=sample.name, source=sample.source, **where
    )


def _mask_of(sample: Sample, point: NDArray[np.float64], plane: str | NDArray[np.float64], cut: Space) -> Any:
    """The mask on a cut of the network's grid, read off the file's own.

    Where there is none, a mask of one slice or of few voxels lies between the network's: then that of the file's own
    slice through the point.
    """
    seen = take_slice(sample.image, sample.labels, sample.space, plane=cut, label=1)
    if seen.mask is not None and bool(seen.mask.any()):
        return seen.mask
    return regrid(_cut(sample, point, plane, min(sample.space.spacing) / 2), cut)[0].mask


def _planes(plane: Any, count: int) -> list[str | NDArray[np.float64]]:
    if isinstance(plane, str):
        given: list[Any] = [plane] * count
    else:
        given = list(plane)
        if given and not isinstance(given[0], str) and np.ndim(given[0]) == 0:
            given = [given] * count
    if len(given) != count:
        raise SettingError(f"plane: expected one for each of {count} clicks, got {len(given)}")
    found: list[str | NDArray[np.float64]] = []
    for one in given:
        if isinstance(one, str) and one not in PLANE_NAMES:
            raise SettingError(f"plane: expected {', '.join(PLANE_NAMES)} or a normal x, y, z, got {one!r}")
        found.append(one if isinstance(one, str) else np.asarray(one, dtype=np.float64))
    return found


def _mask_on(mask: Any, space: Space, image: Reference) -> torch.Tensor:
    """0 and 1 on the grid of the image, by a file of labels or an array `(*spatial)` or `(1, *spatial)`."""
    if isinstance(mask, str | PathLike):
        name, array = str(mask), open_labels(as_path(mask), image).read()
    else:
        name, array = "mask", np.asarray(mask)
        array = array[0] if array.ndim == space.ndim + 1 else array
        if array.shape != space.shape:
            raise DataError(f"{name}: shape {array.shape}, but its image {image.path} has {space.shape}")
        array = whole_numbers(array, as_path(name))
    if not array.any():
        raise DataError(f"{name}: no foreground")
    return torch.from_numpy((array > 0).astype(np.int64))


def _single(
    model: Model[ReconstructTask], path: Path, points: NDArray[np.float64], asked: Asked, label: int
) -> SliceSample:
    """The slice of an image that has no volume."""
    if len(points) != (asked.click is not None):
        raise SettingError(f"click: expected one on a single image, got {len(points)}")
    if asked.pointmap is None:
        read = read_slice(path, spacing=asked.spacing, label=label)
    elif asked.spacing is not None:
        raise SettingError("spacing: expected none with a pointmap, which tells it")
    else:
        read = read_slice(path, spacing=1.0, label=label)
        read = read.replace(space=_where(asked.pointmap, read))
    labels = (
        None if asked.mask is None else _mask_on(asked.mask, read.space, Reference(path, read.space, oriented=False))
    )
    if labels is not None and not len(points):
        world = np.asarray(read.space.to_world(innermost(labels.numpy() > 0, read.space.spacing)))
    else:
        point = points[0]
        world = np.asarray(read.space.to_world(point[::-1].copy())) if len(point) == 2 else point
        check_click(read.image, read.space, world, source=str(path))
    sample = Sample(read.image, read.space, case_name(path), str(path))
    prepared = model.bundle.preprocess(sample)
    outlined = read.replace(mask=None if labels is None else labels > 0)
    at = torch.from_numpy(np.asarray(prepared.space.to_index(world))).to(torch.float32)
    return SliceSample(
        image=prepared.image,
        space=prepared.space,
        name=sample.name,
        source=str(path),
        label=label,
        mask=regrid(outlined, prepared.space)[0].mask,
        click=at,
    )


def innermost(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """The pixel of a mask `(*spatial)` that is farthest from what isn't in it, as index coordinates."""
    from scipy.ndimage import distance_transform_edt

    away = distance_transform_edt(np.pad(mask, 1), sampling=spacing)[(slice(1, -1),) * mask.ndim]
    return np.array(np.unravel_index(int(away.argmax()), mask.shape), dtype=np.float64)


def _where(pointmap: Any, image: SliceSample) -> Space:
    """The grid of a single image by the positions of its pixels.

    Raises:
        DataError: positions of another number of pixels, or none that lie evenly on a plane.
    """
    name, array = "pointmap", pointmap
    if isinstance(pointmap, str | PathLike):
        name, array = str(pointmap), _points_of(as_path(pointmap))
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[0] != 3 and array.shape[2] == 3:
        array = np.moveaxis(array, 2, 0)
    if array.shape != (3, *image.space.shape):
        raise DataError(f"{name}: expected shape {(3, *image.space.shape)} for {image.source}, got {array.shape}")
    try:
        return pointmap_plane(array)
    except DataError as error:
        raise DataError(str(error) if name == "pointmap" else f"{name}: {error}") from error


def _points_of(path: Path) -> NDArray[Any]:
    """The array of a pointmap's file, `(3, H, W)`, whichever of its axes is x, y, z."""
    first, last = (open_image(path, ndim=2, channel_axis=axis) for axis in (0, -1))
    return (first if first.channels == 3 else last).read()

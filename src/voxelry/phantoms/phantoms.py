"""Phantoms: invented torsos whose geometry is known exactly.

A torso is made of simple solids in a body frame (superior, anterior, right; at rank 2 superior, right), in
sizes and places that vary with the seed. A smooth invertible displacement deforms it, so that no solid
keeps its textbook shape, and landmarks follow through the same displacement. The scanner adds texture,
partial volume, a bias field and noise, and looks at it on an anisotropic, oblique, perhaps mirrored grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim
from voxelry.data.sample import Sample
from voxelry.io.images.image import write_image
from voxelry.io.points.landmark_set import LandmarkSet
from voxelry.io.points.landmarks import write_landmarks
from voxelry.ops.masks import mask_boxes
from voxelry.phantoms.anatomy import LABEL_NAMES, LANDMARK_NAMES, Organ, draw_nodules, draw_organs
from voxelry.phantoms.frame import draw_frame, draw_space, grid_shape, grid_steps, scan
from voxelry.phantoms.nuclei import make_nuclei
from voxelry.phantoms.organ import make_organ
from voxelry.phantoms.shapes import Ovoid, smooth_noise

__all__ = ["LABEL_NAMES", "LANDMARK_NAMES", "make_phantom", "write_phantoms"]

_SHAPE = (48, 56, 64)
_SPACING = (3.0, 2.2, 2.0)


def make_phantom(
    seed: int,
    *,
    ndim: int = 3,
    shape: Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    oblique: bool = True,
    organs: Sequence[str] | None = None,
    noise: float = 0.03,
) -> Sample:
    """An invented scan of an invented torso; the same seed and settings give the same arrays.

    Args:
        seed: of everything random.
        ndim: 2 (a coronal plane) or 3.
        shape: spatial shape; 48 x 56 x 64 (its last two at rank 2) if not given.
        spacing: mm per axis; around 3 x 2.2 x 2 (its last two at rank 2) and different in every case if not given.
        oblique: a grid rotated by up to 12 degrees, each axis perhaps reversed, with an origin of its own; else
            the grid's axes are the world's.
        organs: names from `LABEL_NAMES` to include beside the body, all if not given; landmarks of others are
            absent from the result.
        noise: standard deviation of the noise; tissue lies between 0 and 1.

    Returns:
        A sample with an image `(1, *shape)` in [0, 1], landmarks (NaN outside the grid) with `LANDMARK_NAMES`,
        labels (indices into `LABEL_NAMES`), masks and boxes of the nodules.

    Raises:
        SettingError: a rank, shape, spacing or organ that can't be made.
    """
    check_ndim(ndim)
    size = grid_shape(shape, _SHAPE, ndim, 8)
    if unknown := sorted(set(organs or ()) - set(LABEL_NAMES[2:])):
        raise SettingError(f"organs: no {', '.join(unknown)}; expected some of {', '.join(LABEL_NAMES[2:])}")
    generator = np.random.default_rng([int(seed), ndim])
    steps = grid_steps(spacing, (generator.uniform(0.92, 1.08, ndim) * _SPACING[-ndim:]).tolist(), ndim)
    space = draw_space(size, steps, generator, oblique)
    half = np.asarray(space.extent) / 2
    frame = draw_frame(space, generator, largest=0.1 * half)
    torso = [organ for organ in draw_organs(ndim, half, generator) if organs is None or organ.name in organs]
    nodules = draw_nodules(torso, ndim, half, steps, generator) if organs is None or "nodule" in organs else []
    image, labels, masks = _render(frame.points(), torso, nodules, half, steps, generator)
    image = scan(image, noise, generator)

    found = np.unique(masks[masks > 0])  # a nodule may be hidden by another
    ids = torch.from_numpy(np.searchsorted(np.concatenate([[0], found]), masks).astype(np.int64))
    points_of = {name: point for organ in torso for name, point in organ.landmarks.items()}
    names = tuple(name for name in LANDMARK_NAMES if name in points_of)
    body = torch.tensor(np.array([points_of[name] for name in names]).reshape(-1, ndim))
    return Sample(
        image=torch.from_numpy(image[None]),
        space=space,
        name=f"phantom_{seed:03d}",
        landmarks=frame.find(body).float(),
        landmark_names=names,
        labels=torch.from_numpy(labels.astype(np.int64)),
        boxes=mask_boxes(ids, len(found)),
        masks=ids,
    )


_MAKERS: dict[str, Callable[..., Sample]] = {"torso": make_phantom, "nuclei": make_nuclei, "organ": make_organ}


def write_phantoms(
    root: str | Path,
    count: int,
    *,
    seed: int = 0,
    format: str = ".nii.gz",
    landmark_format: str = "txt",
    kind: str = "torso",
    **settings: Any,
) -> Path:
    """Write phantoms of seeds `seed` to `seed + count - 1` in the original's folder layout and return the folder.

    `volumes/case_000.nii.gz`, `instances/` (torsos, nuclei) and `labels/` (torsos, organs) in the same format, and
    of torsos `landmarks/case_000.txt`.

    Args:
        root: folder to write to; made if it isn't there.
        count: number of cases.
        format: suffix of the images. Formats of 8 bits (`.png`) get 0 to 255.
        landmark_format: suffix of the landmark files, such as `txt`, `csv`, `fcsv` or `mrk.json`.
        kind: `torso` (`make_phantom`), `nuclei` (`make_nuclei`) or `organ` (`make_organ`).
        settings: of that function, such as `ndim`, `shape` and `spacing`. `oblique` is, if not given, true in formats
            that keep an affine alone, and never of nuclei.

    Raises:
        SettingError: an unknown kind, a count below 1, or settings that `make_phantom` can't take.
    """
    check_choice("kind", kind, _MAKERS)
    if count < 1:
        raise SettingError(f"count: expected at least 1, got {count!r}")
    suffix = "." + format.lstrip(".")
    tilted = settings.pop("oblique", None)
    if kind != "nuclei":
        settings["oblique"] = suffix in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd") if tilted is None else tilted
    folder = Path(root)
    for number in range(count):
        _write(
            folder, f"case_{number:03d}", _MAKERS[kind](seed + number, **settings), suffix, landmark_format.lstrip(".")
        )
    return folder


def _write(folder: Path, name: str, sample: Sample, suffix: str, landmark_suffix: str) -> None:
    """The files of one case."""
    image = sample.image.numpy()
    if suffix == ".png":
        image = np.round(image * 255).astype(np.uint8)
    write_image(folder / "volumes" / (name + suffix), image, sample.space)
    for part, values in (("labels", sample.labels), ("instances", sample.masks)):
        if values is not None:
            few = int(values.max()) < 256
            stored = values[None].numpy().astype(np.uint8 if few else np.uint16)
            write_image(folder / part / (name + suffix), stored, sample.space)
    if sample.landmarks is not None:
        world = np.asarray(sample.space.to_world(sample.landmarks.double().numpy()), dtype=np.float64)
        points = LandmarkSet(sample.landmark_names, world, {})
        write_landmarks(folder / "landmarks" / f"{name}.{landmark_suffix}", points, space=sample.space)


def _render(
    points: NDArray[np.float32],
    torso: list[Organ],
    nodules: list[Ovoid],
    half: NDArray[np.float64],
    spacing: NDArray[np.float64],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int16], NDArray[np.int16]]:
    """Brightness, labels and nodule ids of every voxel; borders are mixed over the width of a voxel."""
    ndim, size = len(points), points.shape[1:]
    width = np.float32(spacing.mean())
    fine, coarse = (smooth_noise(size, spacing, grain, generator) for grain in (6.0, 18.0))

    def cover(distance: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.clip(np.float32(0.5) - distance / width, 0, 1)

    def paint(part: NDArray[np.float32], value: float | NDArray[np.float32]) -> None:
        np.add(image, part * (value - image), out=image)

    body = Ovoid(np.zeros(ndim), half * 0.96, np.eye(ndim), exponent=2.8)
    skin = body.distance(points)
    image = np.full(size, 0.02, dtype=np.float32)
    labels, masks = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int16)
    fat = 0.05 * float(half.min())
    paint(cover(skin), 0.72 + 0.03 * coarse)
    paint(cover(skin + fat), 0.45 + 0.04 * fine + 0.04 * coarse)
    labels[skin < 0] = LABEL_NAMES.index("body")
    inside = cover(skin + fat / 2)
    for organ in torso:
        distance = organ.solid.distance(points)
        value = organ.brightness + organ.texture * (fine + coarse)
        if organ.name == "spine":  # vertebrae and the softer discs between them
            disc = np.sin(points[0] * np.float32(18 / half[0])) > 0.75
            value = np.where(disc, np.float32(0.55), value)
        if organ.name == "airway":  # the wall
            paint(cover(distance - width) * inside, 0.6)
        if organ.name.endswith("kidney"):  # a darker pelvis under the cortex
            value = value - 0.35 * cover(distance + 0.08 * float(half.min()))
        paint(cover(distance) * inside, value)
        labels[(distance < 0) & (skin < -fat / 2)] = LABEL_NAMES.index(organ.name)
    for number, ball in enumerate(nodules, start=1):
        distance = ball.distance(points)
        paint(cover(distance) * inside, 0.9 + 0.03 * fine)
        ball_voxels = (distance < 0) & (skin < -fat / 2)
        labels[ball_voxels] = LABEL_NAMES.index("nodule")
        masks[ball_voxels] = number
    return image, labels, masks

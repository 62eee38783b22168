"""Planes cut from volumes: one slice and a click are all that `reconstruct` is given.

A slice is a grid of rank 2 in the three-dimensional world (`Space`), whichever way it was cut: along a voxel
axis, where its pixels are the volume's voxels, or obliquely, where they are interpolated. Its rows and columns
are its own index coordinates; what they are in the patient, the full affine says. Axes of arrays are numbered in
array order (plane, row, column); the world's axes are 0, 1, 2 for x, y, z (right, anterior, superior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.core.orientation import orientation_steps
from voxelry.core.rank import per_axis
from voxelry.core.space import Space
from voxelry.data.preprocess import move
from voxelry.data.preprocess.frame import world_aligned
from voxelry.data.preprocess.normalise import finite
from voxelry.data.sample import Sample
from voxelry.data.slices.pointmaps import masked_pointmap
from voxelry.io import open_image
from voxelry.ops.resample import resample

__all__ = [
    "PLANE_NAMES",
    "SliceSample",
    "array_axis",
    "axis_plane",
    "check_click",
    "draw_click",
    "oblique_plane",
    "plane_name",
    "plane_normal",
    "read_slice",
    "regrid",
    "take_labels",
    "take_slice",
    "view_plane",
]

PLANE_NAMES = ("sagittal", "coronal", "axial")
"""Planes by the world axis that they are perpendicular to: x, y, z."""


@dataclass
class SliceSample:
    """One plane of a volume and what was asked of it.

    Attributes:
        image: `(C, H, W)` float32.
        space: the grid of the image, of rank 2.
        name: what the case is called.
        source: the file it came from, for messages.
        label: the organ.
        mask: `(H, W)` bool, where the organ is; None where that is unknown.
        click: `(2,)` float32 index coordinates (row, column); None before one is made.
        pointmap: `(3, H, W)` float32 world mm, NaN outside of the mask or of the click's surroundings; None
            where nobody asked (`pointmaps.pointmap(space)` has every pixel's).
        axis: the volume's array axis that the slice is perpendicular to; None for an oblique one.
        slice_idx: the voxel on that axis.
        volume_space: the grid of the volume; None where there is none.
    """

    image: Tensor
    space: Space
    name: str
    source: str = ""
    label: int = 1
    mask: Tensor | None = None
    click: Tensor | None = None
    pointmap: Tensor | None = None
    axis: int | None = None
    slice_idx: int | None = None
    volume_space: Space | None = None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def plane(self) -> str:
        """`axial`, `coronal`, `sagittal` or `oblique`."""
        return plane_name(self.space)

    @property
    def click_world(self) -> NDArray[np.float64]:
        """The click in world mm, `(3,)`.

        Raises:
            DataError: there is none.
        """
        if self.click is None:
            raise DataError(f"{self.source or self.name}: expected a click on the slice, but it has none")
        return np.asarray(self.space.to_world(self.click.double().numpy()), dtype=np.float64)


def plane_normal(space: Space) -> NDArray[np.float64]:
    """Unit normal of a grid of rank 2, `(3,)`, with its largest component positive.

    Raises:
        SettingError: a grid of another rank.
    """
    if space.affine.shape[1] != 3:
        raise SettingError(f"space: expected a plane (rank 2), got shape {space.shape}")
    normal = np.cross(space.affine[:3, 0], space.affine[:3, 1])
    normal = normal / np.linalg.norm(normal)
    return normal * (1.0 if normal[np.argmax(np.abs(normal))] > 0 else -1.0)


def plane_name(space: Space, *, tolerance: float = 30.0) -> str:
    """The name of a plane whose normal is within `tolerance` degrees of a world axis; else `oblique`."""
    normal = np.abs(plane_normal(space))
    world = int(np.argmax(normal))
    return PLANE_NAMES[world] if normal[world] >= np.cos(np.deg2rad(tolerance)) else "oblique"


def array_axis(space: Space, world: int) -> int:
    """The array axis of a volume that runs along world axis 0, 1 or 2 (x, y, z) most.

    Raises:
        SettingError: another number.
    """
    found = {axis: number for number, (axis, _) in enumerate(space.closest_axes())}
    if world not in found:
        raise SettingError(f"axes: expected 0 (x, sagittal), 1 (y, coronal) or 2 (z, axial), got {world!r}")
    return found[world]


def axis_plane(space: Space, axis: int, index: int) -> Space:
    """The plane of a volume's voxels whose index on `axis` is `index`.

    Raises:
        SettingError: no such axis or voxel.
    """
    if not 0 <= axis < space.ndim or not 0 <= index < space.shape[axis]:
        raise SettingError(f"slice: expected an axis and a voxel of a grid of {space.shape}, got {axis} and {index}")
    rest = [other for other in range(space.ndim) if other != axis]
    affine = space.affine[:, [*rest, space.ndim]].copy()
    affine[:, -1] += index * space.affine[:, axis]
    return Space(tuple(space.shape[other] for other in rest), affine)


def oblique_plane(
    centre: ArrayLike, normal: ArrayLike, *, spacing: float | Sequence[float], shape: int | Sequence[int]
) -> Space:
    """A plane through a point, its rows and columns as near to superior, anterior and right as they can be.

    Args:
        centre: `(3,)` world mm of its middle.
        normal: `(3,)`, of any length and either sign.
        spacing: mm per pixel, one number or (row, column).
        shape: pixels, one number or (rows, columns).

    Raises:
        SettingError: a normal of no length, a spacing or shape that isn't positive.
    """
    direction, middle = np.asarray(normal, dtype=np.float64), np.asarray(centre, dtype=np.float64)
    if direction.shape != (3,) or not np.isfinite(direction).all() or np.linalg.norm(direction) == 0:
        raise SettingError(f"normal: expected three numbers that aren't all 0, got {normal!r}")
    if middle.shape != (3,) or not np.isfinite(middle).all():
        raise SettingError(f"centre: expected three numbers in mm, got {centre!r}")
    steps = np.asarray(per_axis(spacing, 2, "spacing"), dtype=np.float64)
    size = per_axis(shape, 2, "shape")
    if not (np.isfinite(steps) & (steps > 0)).all() or min(size) < 1:
        raise SettingError(f"spacing, shape: expected positive numbers, got {spacing} and {shape}")
    # Superior before anterior before right, without the one that the normal is nearest to.
    rest = [world for world in (2, 1, 0) if world != int(np.argmax(np.abs(direction)))]
    basis = np.linalg.svd(direction[None])[2][1:].T  # (3, 2), orthonormal, in the plane
    start = np.eye(3)[:, rest]
    left, _, right = np.linalg.svd(basis.T @ start)
    axes = basis @ (left @ right)
    affine = np.zeros((4, 3))
    affine[:3, :2] = axes * steps
    affine[:3, 2] = middle - affine[:3, :2] @ ((np.asarray(size) - 1) / 2)
    affine[3, 2] = 1.0
    return Space(tuple(int(count) for count in size), affine)


def take_slice(
    image: Tensor,
    labels: Tensor | None,
    space: Space,
    *,
    axis: int | None = None,
    index: int | None = None,
    plane: Space | None = None,
    label: int | Sequence[int] = 1,
    name: str = "",
    **about: Any,
) -> SliceSample:
    """Cut one plane: `axis` and `index` for one of voxels, or any `plane`.

    Args:
        image: `(C, D, H, W)`.
        labels: `(D, H, W)` classes, or None.
        space: their grid.
        axis, index: array axis and voxel; the values are the volume's own, and the arrays views of it.
        plane: rank 2; the image is interpolated linearly, the labels take the nearest voxel. Outside of the
            volume are the image's smallest value and no label.
        label: the class, or several that count as one organ (the first is the sample's `label`).
        name: of the sample.
        about: its `source`.

    Raises:
        SettingError: neither or both of `index` and `plane`, or a slice outside of the volume.
    """
    classes = [label] if isinstance(label, int) else list(label)
    along = None if axis is None or index is None else (axis, index)
    if (plane is None) == (along is None):
        raise SettingError("slice: expected axis and index, or a plane, and not both")
    if along is not None:
        grid = axis_plane(space, *along)
        cut = image.select(along[0] + 1, along[1])
    elif plane is not None:
        grid = plane
        cut = resample(image, *_plane_map(space, plane), (1, *plane.shape), fill=float(image.min()))[:, 0]
    mask = None
    if labels is not None:
        seen = take_labels(labels, space, axis=axis, index=index, plane=plane)
        mask = torch.isin(seen, torch.tensor(classes, dtype=seen.dtype))
    return SliceSample(
        image=cut.to(torch.float32),
        space=grid,
        name=name,
        label=classes[0],
        mask=mask,
        axis=None if along is None else along[0],
        slice_idx=None if along is None else along[1],
        volume_space=space,
        **about,
    )


def take_labels(
    labels: Tensor, space: Space, *, axis: int | None = None, index: int | None = None, plane: Space | None = None
) -> Tensor:
    """The labels `(D, H, W)` on a plane as `take_slice` cuts it, `(H, W)`: each the nearest voxel's."""
    if axis is not None and index is not None:
        return labels.select(axis, index)
    assert plane is not None
    return resample(labels[None], *_plane_map(space, plane), (1, *plane.shape), order=0)[0, 0]


def _plane_map(space: Space, plane: Space) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset from a plane to a volume; as a volume one voxel thick, whose normal is never taken."""
    step = np.column_stack([plane_normal(plane), plane.affine[:3, :2]])
    return np.linalg.inv(space.affine[:3, :3]) @ step, np.asarray(space.to_index(plane.origin), dtype=np.float64)


def draw_click(mask: Tensor, generator: np.random.Generator) -> Tensor:
    """A random pixel of a mask `(H, W)`, every one as likely: `(2,)` float32 row and column.

    Raises:
        DataError: an empty mask.
    """
    places = torch.nonzero(mask)
    if not len(places):
        raise DataError("click: no foreground on this slice to click on")
    return places[int(generator.integers(len(places)))].to(torch.float32)


def check_click(
    image: Tensor, space: Space, click: ArrayLike, *, source: str = "", air: float | None = None
) -> NDArray[np.float64]:
    """Index coordinates of a click given in world mm, if there is something to click on.

    Args:
        image: `(C, *spatial)`, in the file's own values or scaled.
        space: its grid, of rank 3 or 2; on a plane the click is its nearest point.
        click: `(3,)` world mm.
        source: file, for messages.
        air: the largest value that is nothing but air. By default -500 where the image goes below that
            (Hounsfield units), else 3 % of the way from the 0.5th to the 99.5th percentile.

    Returns:
        `(ndim,)` index coordinates in array order.

    Raises:
        DataError: the click is outside of the volume, or the brightest voxel next to it is air.
    """
    world = np.asarray(click, dtype=np.float64)
    where = f"{source}: " if source else ""
    if world.shape != (3,) or not np.isfinite(world).all():
        raise DataError(f"{where}click: expected three finite numbers x, y, z in world mm, got {click!r}")
    index = np.asarray(space.to_index(world), dtype=np.float64)
    told = ", ".join(f"{value:g}" for value in world)
    if not space.contains(index):
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in space.shape], indexing="ij"), axis=-1)
        box = np.asarray(space.to_world(corners.reshape(-1, space.ndim)))
        low, high = (", ".join(f"{value:.0f}" for value in side) for side in (box.min(axis=0), box.max(axis=0)))
        raise DataError(f"{where}click ({told}) mm is outside of the volume, which goes from ({low}) to ({high})")
    image = finite(image.to(torch.float32))
    near = tuple(
        slice(max(0, round(place) - 1), round(place) + 2) for place in np.clip(index, 0, np.asarray(space.shape) - 1)
    )
    found = float(image[(slice(None), *near)].amax())
    if air is None:
        low, high = np.percentile(image.numpy(), (0.5, 99.5))
        air = -500.0 if float(image.min()) < -500 else float(low + 0.03 * (high - low))
    if found <= air < float(image.max()):
        raise DataError(f"{where}click ({told}) mm is in air: no voxel beside it is above {air:g}")
    return index


def read_slice(path: str | Path, *, spacing: float | Sequence[float] | None = None, label: int = 1) -> SliceSample:
    """One image of rank 2 from a file, with no volume at all.

    A file that says where it lies in the patient keeps that. Others are taken as a plane of the world's x and y:
    the result is then in millimetres but has no place in a patient.

    Args:
        path: in any format that `open_image` reads; colours become grey.
        spacing: mm per pixel, one number or (row, column), instead of the file's own.
        label: the organ to look for.

    Raises:
        DataError: neither the file nor the caller says how large a pixel is.
        FileError: the file can't be read as an image of rank 2.
    """
    path = Path(path)
    file = open_image(path, spacing=spacing, ndim=2)
    silent = not file.has_orientation and set(file.space.spacing) == {1.0}  # what a file without any is given
    if spacing is None and silent:
        raise DataError(f"{path}: says nothing of its spacing, without which there are no millimetres; give --spacing")
    pixels = torch.from_numpy(file.read().astype(np.float32))
    grey = pixels if len(pixels) == 1 else pixels[:3].mean(dim=0, keepdim=True) if len(pixels) > 2 else pixels[:1]
    return SliceSample(image=grey, space=file.space, name=path.name, source=str(path), label=label)


def view_plane(space: Space, centre: ArrayLike, side: float, size: int) -> Space:
    """A square of `size` pixels and `side` mm in a plane, around the foot of a point.

    Its rows and columns run as near to superior, anterior and right as the plane allows, however the plane's own
    grid is turned within it: copies of a slice in other orders of axes give the same view.
    """
    aligned = world_aligned(space.reorder(*orientation_steps(space)))
    foot = np.asarray(space.to_world(space.to_index(np.asarray(centre, dtype=np.float64))))
    affine = np.zeros((4, 3))
    affine[:3, :2] = aligned.directions * (side / size)
    affine[:3, 2] = foot - affine[:3, :2].sum(axis=1) * ((size - 1) / 2)
    affine[3, 2] = 1.0
    return Space((size, size), affine)


def regrid(sample: SliceSample, target: Space) -> tuple[SliceSample, Tensor]:
    """A slice on another grid in its plane: image linear (smoothed where it shrinks), mask nearest, click exact.

    A pointmap is not interpolated: its pixels that are still known get the positions of the new grid. A mask so small
    that no new pixel's centre meets it is kept as the pixels that it falls into.

    Returns:
        The slice, and `(H, W)` bool: which of its pixels lie in the old one; the others hold its smallest value.
    """
    known = None if sample.pointmap is None else torch.isfinite(sample.pointmap).all(dim=0)
    parts = [torch.ones(sample.space.shape, dtype=torch.int64)]
    parts += [part.to(torch.int64) for part in (sample.mask, known) if part is not None]
    # one resampling for all: a bit each
    bits = sum((part << place for place, part in enumerate(parts)), torch.zeros_like(parts[0]))
    moved = move(Sample(finite(sample.image), sample.space, sample.name, labels=bits), target)
    assert moved.labels is not None
    found = [_kept(part, (moved.labels >> place & 1).bool(), sample.space, target) for place, part in enumerate(parts)]
    mask = None if sample.mask is None else found[1]
    points = None if known is None else masked_pointmap(target, found[-1])
    click = sample.click
    if click is not None:
        click = torch.from_numpy(np.asarray(target.to_index(sample.click_world))).to(torch.float32)
    return sample.replace(image=moved.image, space=target, mask=mask, click=click, pointmap=points), found[0]


def _kept(part: Tensor, found: Tensor, space: Space, target: Space) -> Tensor:
    """A region on its new grid, the pixels that it falls into where it would vanish between their centres."""
    if bool(found.any()) or not bool(part.any()):
        return found
    places = np.asarray(space.to_world(torch.nonzero(part).double().numpy()))
    index = np.round(np.asarray(target.to_index(places))).astype(int)
    found[tuple(index[((index >= 0) & (index < target.shape)).all(axis=1)].T)] = True
    return found

"""Random movements of a sample on its own grid, composed into one resampling.

Everything is in millimetres. The frame they are measured in has the grid's centre as its origin and is
`R @ (index - centre)`, where `R` is the triangular factor of the affine (`affine[:3, :ndim] = Q R`): for
orthogonal axes, oblique or not, that is index times spacing, and for a sheared grid (a tilted gantry) it
still has the world's distances and angles. Rotations are thus rigid in the patient, whatever the voxels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.core.space import Space
from voxelry.data.context import swapped_borders
from voxelry.data.sample import Sample
from voxelry.ops.masks import mask_boxes
from voxelry.ops.resample import resample, resample_points, spline_lipschitz

__all__ = ["Movement", "SpatialAugment", "find_swap_pairs"]

# Below 1 the elastic part is a contraction: invertible, with a positive Jacobian, by fixed point.
STEEPEST = 0.9

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class Movement:
    """Where each output index takes its value from: `matrix @ i + offset + spline(i)`, all in voxels.

    Attributes:
        matrix, offset, displacement: as `voxelry.ops.resample.resample` takes them.
        flips: which axes were reversed.
        mirrored: the left-right axis was, so that names of sides have to change places.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    displacement: NDArray[np.float64] | None
    flips: tuple[bool, ...]
    mirrored: bool


@dataclass(frozen=True, kw_only=True)
class SpatialAugment:
    """Rotate, scale, shear, shift, flip and deform image, target, labels, masks, landmarks and boxes together.

    A range is symmetric and uniform. One number stands for every axis; sequences are in array order.

    Args:
        movement_probability: chance that a sample is moved at all.
        rotation: largest angle in degrees; at rank 3 one or three (about the plane, row and column axis),
            at rank 2 one, in the plane.
        scale: largest relative change, 0.1 for factors from 1 / 1.1 to 1.1, uniform in the logarithm; one
            number scales all axes alike, a sequence each on its own.
        shear: largest angle in degrees, at most 25 (no combination flattens the image), drawn for every ordered pair
            of axes.
        shift: largest shift in mm, per axis; in whole voxels where a sample is only shifted or flipped.
        shift_fraction: largest shift as a fraction of the extent, per axis, added to `shift`.
        flip: probability of reversing each array axis.
        mirror: probability of reversing the axis that runs along the patient's left-right, where there is one.
        elastic: largest coefficient of the deformation in mm, per axis; the deformation itself is smaller.
            Where it would fold, it is reduced until its steepest slope is below 0.9 mm per mm.
        elastic_spacing: distance of the coefficients in mm, per axis.
        fill: what comes in from outside: `"minimum"` of each channel, `"edge"`, or a value. Labels and masks
            repeat their edge with `"edge"`, else they get 0.
        outside: landmarks that leave the grid become `"nan"`, or stay where they are with `"keep"`.
        swap_pairs: landmarks that change places when left and right do, by name or index; `"auto"` pairs names
            that differ in left/right or L/R only.
        swap_labels: pairs of label values that do the same.

    Raises:
        SettingError: a value out of range.
    """

    movement_probability: float = 1.0
    rotation: float | Sequence[float] = 10.0
    scale: float | Sequence[float] = 0.1
    shear: float = 0.0
    shift: float | Sequence[float] = 0.0
    shift_fraction: float | Sequence[float] = 0.05
    flip: float | Sequence[float] = 0.0
    mirror: float = 0.0
    elastic: float | Sequence[float] = 0.0
    elastic_spacing: float | Sequence[float] = 32.0
    fill: float | Literal["minimum", "edge"] = "minimum"
    outside: Literal["nan", "keep"] = "nan"
    swap_pairs: Literal["auto"] | Sequence[tuple[str | int, str | int]] = "auto"
    swap_labels: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        for name, high in (("movement_probability", 1), ("flip", 1), ("mirror", 1), ("rotation", 180), ("shear", 25)):
            _check_range(name, getattr(self, name), 0, high)
        for name in ("scale", "shift", "shift_fraction", "elastic"):
            _check_range(name, getattr(self, name), 0, np.inf)
        _check_range("elastic_spacing", self.elastic_spacing, np.finfo(float).tiny, np.inf)
        if isinstance(self.fill, str) and self.fill not in ("minimum", "edge"):
            raise SettingError(f'fill: expected a number, "minimum" or "edge", got {self.fill!r}')
        if self.outside not in ("nan", "keep"):
            raise SettingError(f'outside: expected "nan" or "keep", got {self.outside!r}')
        if isinstance(self.swap_pairs, str) and self.swap_pairs != "auto":
            raise SettingError(f'swap_pairs: expected "auto" or pairs of landmarks, got {self.swap_pairs!r}')

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """A moved copy of `sample` on the same grid; the sample itself where nothing is to move."""
        movement = self.draw(sample.space, generator)
        return sample if movement is None else self.apply(sample, movement)

    def draw(self, space: Space, generator: np.random.Generator) -> Movement | None:
        """A random movement on `space`, or None for none; always the same number of draws for one rank and grid."""
        ndim = space.ndim
        spacing = np.asarray(space.spacing)
        planes = list(itertools.combinations(range(ndim), 2))[::-1]  # about the plane axis first
        moves = generator.random() < self.movement_probability
        angles = _symmetric(generator, per_axis(self.rotation, len(planes), "rotation"))
        bounds = np.log1p(per_axis(self.scale, ndim, "scale"))
        shared = not hasattr(self.scale, "__len__")
        factors = np.exp(bounds * generator.uniform(-1, 1, 1 if shared else ndim))
        shears = _symmetric(generator, (self.shear,) * (ndim * (ndim - 1)))
        extent = np.asarray(per_axis(self.shift_fraction, ndim, "shift_fraction")) * space.extent
        shift = _symmetric(generator, np.asarray(per_axis(self.shift, ndim, "shift")) + extent)
        flips = generator.random(ndim) < per_axis(self.flip, ndim, "flip")
        sides = [axis for axis, (world, _) in enumerate(space.closest_axes()) if world == 0]
        flips[sides] ^= generator.random() < self.mirror
        elastic = self._draw_elastic(space, generator)
        if not moves:
            return None

        forward = np.eye(ndim)  # of the anatomy, in mm
        for (a, b), angle in zip(planes, np.deg2rad(angles), strict=True):
            turn = np.eye(ndim)
            turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            forward = forward @ turn
        skew = np.eye(ndim)
        skew[~np.eye(ndim, dtype=bool)] = np.tan(np.deg2rad(shears))
        forward = forward @ skew @ np.diag(np.broadcast_to(factors, ndim))
        centre = (np.asarray(space.shape) - 1) / 2
        upright = np.array_equal(forward, np.eye(ndim))
        if upright and elastic is None and not shift.any() and not flips.any():
            return None
        frame = _frame(space)
        reverse = np.diag(np.where(flips, -1.0, 1.0))
        pull = reverse @ np.linalg.inv(forward @ frame)  # mm of the frame to input voxels
        # R^-1 R is not exactly the identity, and a flip has to be exact
        matrix = reverse if upright else pull @ frame
        offset = centre - matrix @ centre - pull @ (frame / spacing) @ shift
        displacement = None if elastic is None else np.tensordot(pull, elastic, axes=1)
        if displacement is None and np.array_equal(np.abs(matrix), np.eye(ndim)):
            # A part of a voxel would round all labels the same way, away from image and landmarks.
            offset = np.round(offset)
        return Movement(matrix, offset, displacement, tuple(flips.tolist()), mirrored=bool(flips[sides].any()))

    def _draw_elastic(self, space: Space, generator: np.random.Generator) -> NDArray[np.float64] | None:
        """Spline coefficients `(ndim, *grid)` in mm of the frame, or None."""
        ndim, spacing = space.ndim, np.asarray(space.spacing)
        largest = np.asarray(per_axis(self.elastic, ndim, "elastic"))
        if not largest.any():
            return None
        steps = np.asarray(per_axis(self.elastic_spacing, ndim, "elastic_spacing"))
        length = (np.asarray(space.shape) - 1) * spacing
        grid = np.maximum(1, np.round(length / steps)).astype(int) + 3
        coefficients = generator.uniform(-1, 1, (ndim, *grid)) * largest.reshape(-1, *[1] * ndim)
        # slope per mm of each axis, times the most that a sheared frame can stretch a direction
        slope = spline_lipschitz(coefficients, space.shape, space.spacing)
        slope *= float(np.linalg.norm(np.diag(spacing) @ np.linalg.inv(_frame(space)), ord=2))
        return coefficients * min(1.0, STEEPEST / max(slope, 1e-12))

    def apply(self, sample: Sample, movement: Movement) -> Sample:
        """`sample` after `movement`, every field of it."""
        shape = sample.space.shape
        matrix, offset, displacement = movement.matrix, movement.offset, movement.displacement
        image = sample.image if sample.target is None else torch.cat([sample.image, sample.target])
        fill = self.fill if self.fill != "minimum" else image.flatten(1).amin(dim=1).tolist()
        image = resample(image, matrix, offset, shape, displacement=displacement, fill=fill)
        image, target = image[: len(sample.image)], image[len(sample.image) :]
        present = [values for values in (sample.labels, sample.masks) if values is not None]
        if present:
            moved = resample(
                torch.stack(present),
                matrix,
                offset,
                shape,
                displacement=displacement,
                order=0,
                fill="edge" if self.fill == "edge" else 0.0,
            )
            present = [values.to(old.dtype) for values, old in zip(moved, present, strict=True)]
        labels = None if sample.labels is None else present[0]
        masks = None if sample.masks is None else present[-1]
        boxes, classes = sample.boxes, sample.classes
        if labels is not None and movement.mirrored:
            labels = _swap_labels(labels, self.swap_labels)
        if boxes is not None:
            boxes = self._move_boxes(boxes, movement, shape) if masks is None else mask_boxes(masks, len(boxes))
            kept = torch.isfinite(boxes).all(dim=1)
            masks = masks if masks is None or bool(kept.all()) else _relabel(masks, kept)
            boxes = boxes[kept]
            classes = None if classes is None else classes[kept]
        landmarks = None if sample.landmarks is None else self._move_landmarks(sample, sample.landmarks, movement)
        return sample.replace(
            image=image,
            target=None if sample.target is None else target,
            labels=labels,
            masks=masks,
            boxes=boxes,
            classes=classes,
            landmarks=landmarks,
            borders=None if sample.borders is None else _move_borders(sample.borders, movement, sample.space),
        )

    def _move_landmarks(self, sample: Sample, landmarks: Tensor, movement: Movement) -> Tensor:
        space = sample.space
        points = resample_points(
            landmarks, movement.matrix, movement.offset, space.shape, displacement=movement.displacement
        )
        if movement.mirrored:
            order = list(range(len(points)))
            for a, b in find_swap_pairs(sample.landmark_names, self.swap_pairs, len(points)):
                order[a], order[b] = b, a
            points = points[order]
        if self.outside == "nan":
            inside = torch.as_tensor(space.contains(points.cpu().numpy()), device=points.device)
            points = torch.where(inside[:, None], points, torch.nan)
        return points

    def _move_boxes(self, boxes: Tensor, movement: Movement, shape: tuple[int, ...]) -> Tensor:
        """Boxes around the moved boxes, cut at the grid; NaN for one that is outside."""
        ndim = len(shape)
        # straight edges stay straight without a displacement, else points along them are needed too
        steps = torch.linspace(0, 1, 2 if movement.displacement is None else 5, dtype=boxes.dtype, device=boxes.device)
        lattice = torch.cartesian_prod(*[steps] * ndim)
        low, high = boxes[:, None, :ndim], boxes[:, None, ndim:]
        corners = resample_points(
            low + lattice * (high - low), movement.matrix, movement.offset, shape, displacement=movement.displacement
        )
        last = torch.tensor(shape, dtype=boxes.dtype, device=boxes.device) - 0.5
        low = corners.amin(dim=1).clamp(min=-0.5)
        high = torch.minimum(corners.amax(dim=1), last)
        moved = torch.cat([low, high], dim=1)
        return torch.where((low < high).all(dim=1, keepdim=True), moved, torch.nan)


def find_swap_pairs(
    names: Sequence[str], pairs: Literal["auto"] | Sequence[tuple[str | int, str | int]], count: int
) -> list[tuple[int, int]]:
    """Indices of the landmarks that change places in a mirror image.

    Args:
        names: of the landmarks; may be empty where pairs are given by index.
        pairs: pairs of names or indices, or `"auto"`: names that are equal but for one word, left/right or L/R.
        count: number of landmarks.

    Raises:
        SettingError: a pair names a landmark that isn't there, or one landmark twice.
    """
    if isinstance(pairs, str):
        lookup = {name.lower(): index for index, name in enumerate(names)}
        partners = [lookup.get(_SIDE.sub(lambda m: _OTHER_SIDE[m[0].lower()], name.lower()), -1) for name in names]
        return [(index, partner) for index, partner in enumerate(partners) if partner > index]
    found = []
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise SettingError(f"swap_pairs: expected pairs of two landmarks, got {pair!r}")
        indices = [names.index(entry) if entry in names else entry for entry in pair]
        for entry in indices:
            if not isinstance(entry, int) or not 0 <= entry < count:
                raise SettingError(f"swap_pairs: no landmark {entry!r} among {', '.join(names) or count}")
        found.append((int(indices[0]), int(indices[1])))
    flat = [index for pair in found for index in pair]
    if len(set(flat)) != len(flat):
        raise SettingError(f"swap_pairs: expected each landmark once, got {list(pairs)!r}")
    return found


def _frame(space: Space) -> NDArray[np.float64]:
    """Index to mm, `(ndim, ndim)` upper triangular with a positive diagonal; the spacing where axes are orthogonal."""
    frame = np.linalg.qr(space.affine[:3, : space.ndim])[1]
    return frame * np.where(np.diag(frame) < 0, -1.0, 1.0)[:, None]


def _symmetric(generator: np.random.Generator, bounds: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(bounds) * generator.uniform(-1, 1, len(bounds))


def _move_borders(borders: Tensor, movement: Movement, space: Space) -> Tensor:
    """Distances to the borders where these were moved to, but for what the spline does to them.

    The distance to a plane that an affine map moves is divided by the length of the map's gradient across it.
    """
    moved = resample(
        borders, movement.matrix, movement.offset, space.shape, displacement=movement.displacement, fill="edge"
    )
    spacing = np.asarray(space.spacing)
    steepness = np.linalg.norm(movement.matrix * spacing[:, None] / spacing, axis=1).repeat(2)
    moved /= torch.from_numpy(steepness.reshape(-1, *[1] * space.ndim)).to(moved)
    flipped = [axis for axis, flip in enumerate(movement.flips) if flip]
    return moved[swapped_borders(space.ndim, flipped)]


def _swap_labels(labels: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    swapped = labels.clone()
    for a, b in pairs:
        swapped[labels == a], swapped[labels == b] = b, a
    return swapped


def _relabel(masks: Tensor, kept: Tensor) -> Tensor:
    """Ids 1, 2, ... for the instances kept, in their order, and 0 for all else."""
    new = torch.zeros(len(kept) + 1, dtype=masks.dtype, device=masks.device)
    new[1:] = kept.cumsum(0) * kept
    return new[torch.where((masks > 0) & (masks <= len(kept)), masks, 0).long()]


def _check_range(name: str, value: float | Sequence[float], low: float, high: float) -> None:
    try:
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise SettingError(f"{name}: expected a number or one per axis, got {value!r}") from error
    if not (np.isfinite(values).all() and (values >= low).all() and (values <= high).all()):
        raise SettingError(f"{name}: expected {low:g} to {high:g}, got {value!r}")

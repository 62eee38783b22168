"""One invented organ, cut out closely: a curved, tapering body among other tissues.

It stands for organs such as the hippocampus: their shape is much the same in everybody, how they stand out
from what is around them is not. So the shape varies a little from seed to seed and the brightness of
everything wildly, which makes these phantoms a base to learn few real cases on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.rank import check_ndim
from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.phantoms.frame import draw_frame, draw_space, grid_shape, grid_steps, scan
from voxelry.phantoms.shapes import Ovoid, smooth_noise

__all__ = ["ORGAN_LABELS", "make_organ"]

ORGAN_LABELS = ("background", "head", "tail")

_FIELD = (56, 72, 56)  # what the crop is cut out of
_RADII = (5.5, 22.0, 5.5)  # mm: superior, anterior, right
_MARGIN = 5.5  # voxels between the organ and the border of the crop, on average
_CONTRAST = 0.1  # at least, between the organ and each tissue


@dataclass(frozen=True)
class _Curved:
    """An ovoid along the anterior axis whose ends are bent away, by `bend` mm along each axis at its tips."""

    solid: Ovoid
    length: float
    axis: int
    bend: NDArray[np.float64]

    def distance(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Signed distance in mm to first order, `(ndim, *grid) -> grid`; negative inside."""
        along = np.clip(points[self.axis] / np.float32(self.length), -1.5, 1.5)
        bend = self.bend.reshape(-1, *[1] * along.ndim).astype(np.float32)
        return self.solid.distance(points + bend * along**2)


def make_organ(
    seed: int,
    *,
    ndim: int = 3,
    shape: Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    oblique: bool = False,
    noise: float | None = None,
) -> Sample:
    """An invented organ in a close crop; the same seed and settings give the same arrays.

    Args:
        seed: of everything random.
        ndim: 2 (superior and anterior, as it were) or 3.
        shape: of the field that the crop is cut out of, at least 32 voxels per axis; 56 x 72 x 56 (its last two at
            rank 2) if not given.
        spacing: mm per axis; about 1 if not given. The organ is about 44 mm long, and less where the field is small.
        oblique: a grid rotated by up to 12 degrees, each axis perhaps reversed, with an origin of its own; else
            the grid's axes are the world's.
        noise: standard deviation of the noise; 0.01 to 0.06, by the seed, if not given. Tissue lies between 0 and 1.

    Returns:
        A sample with an image `(1, *crop)` in [0, 1] and labels (indices into `ORGAN_LABELS`).

    Raises:
        SettingError: a rank, shape or spacing that can't be made.
    """
    check_ndim(ndim)
    size = grid_shape(shape, _FIELD, ndim, 32)
    generator = np.random.default_rng([int(seed), ndim, 2])
    steps = grid_steps(spacing, generator.uniform(0.9, 1.1, ndim).tolist(), ndim)
    space = draw_space(size, steps, generator, oblique)
    half = np.asarray(space.extent) / 2
    frame = draw_frame(space, generator, largest=0.1 * half)
    points = frame.points()
    organ = _draw_organ(ndim, float(half.min()), generator)
    distance = organ.distance(points)
    image = _paint(points, distance, organ, steps, generator)
    image = scan(image, float(generator.uniform(0.01, 0.06)) if noise is None else noise, generator)
    front = points[organ.axis] > 0.25 * organ.length
    labels = np.where(distance < 0, np.where(front, 1, 2), 0)
    window = _around(labels > 0, generator)
    low = np.array([part.start for part in window])
    affine = space.affine.copy()
    affine[:, ndim] += affine[:, :ndim] @ low
    kept = Space(tuple(part.stop - part.start for part in window), affine)
    return Sample(
        image=torch.from_numpy(np.ascontiguousarray(image[window])[None]),
        space=kept,
        name=f"organ_{seed:03d}",
        labels=torch.from_numpy(labels[window].astype(np.int64)),
    )


def _draw_organ(ndim: int, room: float, generator: np.random.Generator) -> _Curved:
    """Much the same in every case: size by 8 %, direction by a few degrees; of the left or the right side."""
    axis = 1
    radii = np.array(_RADII)[:ndim] * np.exp(generator.normal(0, 0.08, ndim))
    radii *= min(1.0, 0.75 * room / float(radii.max()))
    side = 1.0 if generator.random() < 0.5 else -1.0
    direction = np.zeros(ndim)
    direction[axis] = 1.0
    direction += generator.normal(0, 0.08, ndim) + np.array([0.1, 0.0, 0.45 * side])[:ndim]
    others = [place for place in range(ndim) if place != axis]
    basis = np.eye(ndim)[:, [axis, *others]]
    basis[:, 0] = direction
    axes = np.linalg.qr(basis)[0]
    axes *= np.where(np.einsum("ij,ij->j", axes, basis) < 0, -1.0, 1.0)
    bend = np.array([0.6, 0.0, 0.9 * side])[:ndim] * radii.min() * generator.uniform(0.4, 1.4, ndim)
    solid = Ovoid(np.zeros(ndim), radii[[axis, *others]], axes, exponent=2.3, taper=-generator.uniform(0.2, 0.45))
    return _Curved(solid, float(radii[axis]), axis, bend)


def _paint(
    points: NDArray[np.float32],
    distance: NDArray[np.float32],
    organ: _Curved,
    steps: NDArray[np.float64],
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """Three tissues in layers and blobs, a few neighbours, and the organ, whose brightness is none of theirs."""
    size = distance.shape
    fine, coarse = (smooth_noise(size, steps, grain, generator) for grain in (3.0, 9.0))
    levels = np.sort(generator.uniform(0.1, 0.95, 3))[generator.permutation(3)]
    own = generator.uniform(0.15, 0.9)
    while np.abs(levels - own).min() < _CONTRAST:
        levels, own = generator.uniform(0.1, 0.95, 3), generator.uniform(0.15, 0.9)
    image = np.full(size, levels[0], dtype=np.float32)
    layers = coarse + 0.08 * np.clip(distance, 0, 12)  # the middle tissue lies about the organ
    for level, threshold in zip(levels[1:], (0.3, 1.1), strict=True):
        image += (level - image) * np.clip((layers - threshold) * 3, 0, 1)
    width = np.float32(steps.mean())
    for _ in range(int(generator.integers(4, 10))):
        away = generator.normal(size=len(points))
        away *= generator.uniform(6, 20) / np.linalg.norm(away)
        away[organ.axis] *= 1.6
        turn = np.linalg.qr(generator.normal(size=(len(points), len(points))))[0]
        neighbour = Ovoid(away, generator.uniform(3, 8, len(points)), turn)
        part = np.clip(0.5 - neighbour.distance(points) / width, 0, 1)
        image += part * (np.float32(generator.uniform(0.1, 0.95)) - image)
    image += np.float32(generator.uniform(0.01, 0.04)) * fine
    inside = np.clip(np.float32(0.5) - distance / width, 0, 1)
    texture = np.float32(generator.uniform(0.01, 0.04)) * (fine + coarse)
    return (image + inside * (np.float32(own) + texture - image)).astype(np.float32)


def _around(organ: NDArray[np.bool_], generator: np.random.Generator) -> tuple[slice, ...]:
    """The organ's box with margins that differ from side to side, within the grid."""
    window = []
    for axis, size in enumerate(organ.shape):
        others = tuple(other for other in range(organ.ndim) if other != axis)
        found = np.flatnonzero(organ.any(axis=others))
        low, high = np.maximum(np.rint(generator.normal(_MARGIN, 1.0, 2)), 1).astype(int)
        window.append(slice(max(int(found[0]) - low, 0), min(int(found[-1]) + 1 + high, size)))
    return tuple(window)

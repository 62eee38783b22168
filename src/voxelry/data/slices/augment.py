"""Augmentation of slices that keeps image, mask, click, pointmap and the three-dimensional truth together.

Two things are moved. The world: a small rotation about the click, one scale, perhaps a reflection; the slice's
and the volume's affine go through it alike, so pixels and voxels stay what they are, and so does their place in
each other. The view: the slice is looked at turned, zoomed and shifted within its own plane; image and mask are
resampled, and the positions of the new pixels are computed, not interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.augment.intensity import IntensityAugment
from voxelry.data.sample import Sample
from voxelry.data.slices.cut import SliceSample, regrid
from voxelry.data.slices.pointmaps import masked_pointmap

__all__ = ["SliceAugment", "SliceMovement", "move_slice", "move_space"]


@dataclass(frozen=True, eq=False)
class SliceMovement:
    """One draw.

    Attributes:
        motion: `(4, 4)` world mm to world mm, a similarity.
        turn: radians by which the view is turned in its plane.
        zoom: factor of the view's pixel size.
        shift: mm by which the view's middle moves along its rows and columns, `(2,)`.
    """

    motion: NDArray[np.float64]
    turn: float
    zoom: float
    shift: NDArray[np.float64]

    @property
    def scale(self) -> float:
        """Factor of all distances in the world."""
        return float(np.cbrt(abs(np.linalg.det(self.motion[:3, :3]))))

    def view(self, space: Space) -> Space:
        """The grid of a plane, of the same shape, turned, zoomed and shifted within it."""
        steps = np.asarray(space.spacing)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        # in mm along the plane's axes, so that the turn is one also where pixels aren't square
        matrix = np.diag(1 / steps) @ (self.zoom * np.array([[cos, -sin], [sin, cos]])) @ np.diag(steps)
        middle = (np.asarray(space.shape) - 1) / 2
        return space.remap(matrix, middle + self.shift / steps - matrix @ middle, space.shape)


def move_space(space: Space, motion: NDArray[np.float64]) -> Space:
    """A grid after a motion `(4, 4)` of the world."""
    return Space(space.shape, motion @ space.affine)


def move_slice(sample: SliceSample, motion: NDArray[np.float64]) -> SliceSample:
    """A slice and its volume after a motion `(4, 4)` of the world; it loses its pointmap."""
    volume = sample.volume_space
    return sample.replace(
        space=move_space(sample.space, motion),
        volume_space=None if volume is None else move_space(volume, motion),
        pointmap=None,
    )


@dataclass(frozen=True, kw_only=True)
class SliceAugment:
    """Small changes of a slice and of the world it lies in.

    A range is symmetric and uniform.

    Args:
        probability: chance that a slice is moved at all; its intensities have chances of their own.
        rotation: largest angle in degrees that the world turns by, about any axis.
        scale: largest relative change of the world's size, uniform in the logarithm.
        mirror: chance that the world's left and right change places.
        turn: largest angle in degrees that the view turns by in its plane.
        zoom: largest relative change of the view's pixel size, uniform in the logarithm.
        shift: largest shift of the view in mm, along its rows and its columns.
        intensity: settings of `IntensityAugment`; None for no change of intensities.

    Raises:
        SettingError: a value out of range.
    """

    probability: float = 1.0
    rotation: float = 10.0
    scale: float = 0.1
    mirror: float = 0.0
    turn: float = 10.0
    zoom: float = 0.1
    shift: float = 3.0
    intensity: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        highest = {"probability": 1.0, "mirror": 1.0, "rotation": 180.0, "turn": 180.0}
        for name in ("probability", "rotation", "scale", "mirror", "turn", "zoom", "shift"):
            value = getattr(self, name)
            high = highest.get(name, np.inf)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
                raise SettingError(f"{name}: expected a number from 0 to {high:g}, got {value!r}")
        IntensityAugment(**dict(self.intensity or {}))

    def settings(self) -> dict[str, Any]:
        """Plain values: `SliceAugment(**settings)` does the same."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"intensity": None if self.intensity is None else dict(self.intensity)}

    def draw(self, centre: NDArray[np.float64], generator: np.random.Generator) -> SliceMovement:
        """A random movement, its rotation and scale about `centre` `(3,)` world mm; always as many draws."""
        moved = generator.random() < self.probability
        axis = generator.standard_normal(3)
        angle, scale, turn, zoom = generator.uniform(-1, 1, 4)
        shift = generator.uniform(-1, 1, 2)
        mirrored = generator.random() < self.mirror
        if not moved:
            return SliceMovement(np.eye(4), 0.0, 1.0, np.zeros(2))
        rotation = _rotation(axis / np.linalg.norm(axis), np.deg2rad(self.rotation * angle))
        if mirrored:
            rotation = rotation @ np.diag([-1.0, 1.0, 1.0])
        motion = np.eye(4)
        motion[:3, :3] = rotation * np.exp(np.log1p(self.scale) * scale)
        motion[:3, 3] = centre - motion[:3, :3] @ centre
        return SliceMovement(
            motion, np.deg2rad(self.turn * turn), float(np.exp(np.log1p(self.zoom) * zoom)), shift * self.shift
        )

    def move(self, sample: SliceSample, movement: SliceMovement) -> SliceSample:
        """The slice in the moved world (its own and the volume's grid, the pointmap), its pixels untouched."""
        space = move_space(sample.space, movement.motion)
        points = sample.pointmap
        if points is not None:
            points = masked_pointmap(space, points.isfinite().all(dim=0))
        volume = sample.volume_space
        volume = None if volume is None else move_space(volume, movement.motion)
        return sample.replace(space=space, pointmap=points, volume_space=volume)

    def change_intensity(self, sample: SliceSample, generator: np.random.Generator) -> SliceSample:
        """The slice with other grey values, in the range of its own unless `intensity` has a `value_range`."""
        if self.intensity is None:
            return sample
        change = IntensityAugment(**{"value_range": None, **self.intensity})
        return sample.replace(image=change(Sample(sample.image, sample.space, sample.name), generator).image)

    def __call__(self, sample: SliceSample, generator: np.random.Generator) -> tuple[SliceSample, NDArray[np.float64]]:
        """A changed slice of the same shape, and the motion `(4, 4)` that the three-dimensional truth must follow.

        The truth follows it by its affine alone: `move_space(space, motion)`; distances grow by the scale.
        """
        middle = sample.space.to_world((np.asarray(sample.space.shape) - 1) / 2)
        movement = self.draw(np.asarray(middle) if sample.click is None else sample.click_world, generator)
        moved = self.move(sample, movement)
        view = movement.view(moved.space)
        if not view.is_close(moved.space):
            moved, _ = regrid(moved, view)
        return self.change_intensity(moved, generator), movement.motion


def _rotation(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """About a unit axis (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross

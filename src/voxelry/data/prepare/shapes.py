"""The classes of one case on its new grid: a label map, and of each class its distances and its surface.

The map is `ops.labels.resample_labels`' of the labels as they were drawn. Distances are made on the grid that the
labels were drawn on, where they are exact, and read off the new one; where a voxel's centre is close to a border, its
sign follows the map, so that what is inside is the same in both. Surfaces come from the drawn grid: a coarse one
rounds off what is convex.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from voxelry.core.space import Space
from voxelry.data.preprocess.frame import index_map
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.ops.labels import resample_labels
from voxelry.ops.sdf import mask_window
from voxelry.ops.surface import Mesh, extract_surface, volume_mismatch

__all__ = ["CaseLabels", "ClassShape"]

_CHANGED = 0.1  # share of a class's volume that a coarse grid may take or add without a word


@dataclass(frozen=True, eq=False)
class ClassShape:
    """One class of a case.

    Attributes:
        label: its number.
        distances: `(d, h, w)` float32 mm on a part of the new grid, negative where the label map has the class.
        start: the first voxel of that part, `(3,)`.
        shape: its distances as they were drawn.
    """

    label: int
    distances: NDArray[np.float32]
    start: tuple[int, ...]
    shape: OrganShape

    def surface(self, smooth: int) -> Mesh:
        """The closed surface in world mm, after rounds of smoothing that keep its volume."""
        drawn = self.shape
        return extract_surface(drawn.distances.astype(np.float32), drawn.space, smooth=smooth)


class CaseLabels:
    """The labels of one case, from the grid that they were drawn on to a new one.

    Args:
        labels: `(D, H, W)` classes from 1, 0 for background.
        space: their grid, oblique, mirrored, anisotropic or sheared.
        target: the new grid.
        count: how many classes there may be.

    Attributes:
        map: `(D, H, W)` uint8, or uint16 of more than 255 classes, on `target`.
        drawn_ml, written_ml: volume of every class before and after, `(count,)`.
    """

    def __init__(self, labels: NDArray[np.integer], space: Space, target: Space, count: int):
        small: NDArray[np.integer] = labels.astype(np.uint8 if count < 256 else np.uint16)
        self.labels, self.space, self.target = small, space, target
        self.map = resample_labels(small, *index_map(space, target), target.shape)
        self.drawn_ml, self.written_ml = (
            np.bincount(one.ravel(), minlength=count + 1)[1:] * _voxel_ml(grid)
            for one, grid in ((small, space), (self.map, target))
        )

    @property
    def present(self) -> list[int]:
        """Classes that the new map has."""
        return [place + 1 for place, volume in enumerate(self.written_ml) if volume > 0]

    def faults(self, names: dict[int, str]) -> list[str]:
        """A line for each class that the new grid loses, or keeps with another volume, such as a thin one."""
        lines = []
        for place, (drawn, written) in enumerate(zip(self.drawn_ml, self.written_ml, strict=True)):
            name = names.get(place + 1, f"class {place + 1}")
            steps = " x ".join(f"{step:.3g}" for step in self.target.spacing)
            if drawn > 0 and written == 0:
                lines.append(
                    f"{name} ({drawn:.3g} ml) vanishes on the grid of {steps} mm; a smaller --spacing keeps it"
                )
            elif abs(written - drawn) > _CHANGED * drawn:
                lines.append(
                    f"{name} has {written:.3g} ml on the grid of {steps} mm, and {drawn:.3g} ml as it is drawn"
                )
        return lines

    def thin(self, enclosed: Mapping[int, float], names: Mapping[int, str]) -> list[str]:
        """A line for each class whose mesh encloses (ml) another volume than its voxels have as they were drawn."""
        lines = (
            volume_mismatch(names.get(label, f"class {label}"), volume, float(self.drawn_ml[label - 1]))
            for label, volume in enclosed.items()
        )
        return [line for line in lines if line]

    def shapes(self, truncation: float) -> Iterator[ClassShape]:
        """Every class that the new map has, one after another, its distances clipped to ±`truncation` mm."""
        boxes: list[Any] = find_objects(self.labels)
        for label in self.present:
            box = boxes[label - 1]
            part = self.space.crop([side.start for side in box], [side.stop - side.start for side in box])
            shape = OrganShape.of_mask(self.labels[box] == label, part, truncation)
            if shape is not None:
                yield self._on_grid(label, shape, truncation)

    def _on_grid(self, label: int, shape: OrganShape, truncation: float) -> ClassShape:
        window = mask_window(self.map == label, truncation / np.asarray(self.target.spacing))
        assert window is not None  # it is present
        start = tuple(side.start for side in window)
        distances = shape.on(self.target.crop(start, [side.stop - side.start for side in window]), truncation)
        inside = self.map[window] == label
        least = np.float32(1e-3 * min(truncation, *self.target.spacing))
        distances = np.where(inside, np.minimum(distances, -least), np.maximum(distances, least)).astype(np.float32)
        return ClassShape(label, distances, start, shape)


def _voxel_ml(space: Space) -> float:
    return abs(float(np.linalg.det(space.affine[:3, :3]))) / 1000

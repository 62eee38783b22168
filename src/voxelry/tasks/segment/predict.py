"""What the task answers for one image: its instances, in voxels and in the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.instances import Crop, Instances, LabelVolume, PackedCrops, paint_blocks

__all__ = ["InstancePrediction"]

MICROSCOPIC_MM = 0.05  # voxels below this are a microscope's, whose users think in micrometres
_BLOCK = 256
_EAGER = 1 << 26  # voxels: label volumes up to here are painted at once, larger ones where they are looked at
_SIZES = {2: "area", 3: "volume"}


@dataclass(frozen=True, eq=False)
class InstancePrediction:
    """The instances of one image; the k-th has id k + 1 in `label_volume` and in every file.

    Attributes:
        name: the case.
        space: the grid that was predicted on.
        instances: boxes in index coordinates on `space`, scores, classes and masks, which may overlap.
        label_volume: `(*spatial)` int32, painted once, the higher score on top; an array or what can be cut
            like one (a memory map, a zarr array).
        candidates: what the detector considered, these instances and those it was not sure enough of, for measures
            that rank by score; None where nothing else is known.
    """

    name: str
    space: Space
    instances: Instances
    label_volume: Any
    candidates: Instances | None = None

    @classmethod
    def from_instances(
        cls,
        name: str,
        space: Space,
        instances: Instances,
        label_volume: Any = None,
        *,
        candidates: Instances | None = None,
    ) -> Self:
        """A prediction of these instances; the label volume is painted here if it isn't given.

        Raises:
            SettingError: instances or a label volume of another rank or shape than `space`.
        """
        if instances.ndim != space.ndim:
            raise SettingError(f"instances: expected rank {space.ndim}, got {instances.ndim}")
        if label_volume is None:
            label_volume = LabelVolume(instances, space.shape)
            if prod(space.shape) <= _EAGER:
                label_volume = np.asarray(label_volume)
        if tuple(label_volume.shape) != space.shape:
            raise SettingError(f"label_volume: expected shape {space.shape}, got {tuple(label_volume.shape)}")
        return cls(name, space, instances, label_volume, candidates)

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """`(K, 2 * ndim)`, index coordinates on `space`, all lows then all highs."""
        return self.instances.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """`(K,)` in [0, 1]."""
        return self.instances.scores

    @property
    def classes(self) -> NDArray[np.int64]:
        """`(K,)`, from 1."""
        return self.instances.classes

    @property
    def crops(self) -> Sequence[Crop]:
        """K windows with their masks."""
        return self.instances.crops

    @property
    def voxel_size(self) -> float:
        """Volume of a voxel in mm³; area in mm² at rank 2."""
        matrix = self.space.affine[:3, : self.space.ndim]
        return float(np.sqrt(np.linalg.det(matrix.T @ matrix)))

    def centroids(self) -> NDArray[np.float64]:
        """Mean index coordinate of each mask, `(K, ndim)`; the box centre where the mask is empty."""
        ndim = self.space.ndim
        centres = (self.boxes[:, :ndim].astype(np.float64) + self.boxes[:, ndim:]) / 2
        for row, (window, mask) in enumerate(self.crops):
            if mask.any():
                centres[row] = [
                    part.start + float(places.mean()) for part, places in zip(window, np.nonzero(mask), strict=True)
                ]
        return centres

    def world_boxes(self) -> NDArray[np.float64]:
        """Boxes along the world's axes that hold the predicted ones, `(K, 6)`: low x, y, z, high x, y, z in mm."""
        corners = self.space.to_world(_corners(self.boxes.astype(np.float64)))
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)

    def table(self, *, class_names: Mapping[int, str] | None = None, micrometres: bool | None = None) -> list[dict]:
        """One row per instance: `id`, `score`, `class`, `voxels`, volume, centroid and box in the world.

        Centroid and box are world x, y, z in mm, RAS+ (`centroid_x_mm`, `box_low_x_mm`, `box_high_x_mm`, ...),
        the volume is `volume_mm3`, or `area_mm2` at rank 2.

        Args:
            class_names: class to a name to write instead of the number.
            micrometres: add the same columns in µm; by default where every voxel is shorter than 50 µm.
        """
        names, units = self.columns(micrometres=micrometres), self._units(micrometres)
        ndim = self.space.ndim
        centroids, boxes, voxels = self.space.to_world(self.centroids()), self.world_boxes(), self.instances.voxels()
        rows = []
        for k in range(len(self)):
            number = int(self.classes[k])
            values: list[Any] = [
                k + 1,
                float(self.scores[k]),
                number if class_names is None else class_names.get(number, str(number)),
                int(voxels[k]),
            ]
            for _, factor in units:
                values.append(float(voxels[k]) * self.voxel_size * factor**ndim)
                values += [float(value) * factor for value in (*centroids[k], *boxes[k])]
            rows.append(dict(zip(names, values, strict=True)))
        return rows

    def columns(self, *, micrometres: bool | None = None) -> list[str]:
        """Names of the columns of `table`, which has no rows where there are no instances."""
        ndim = self.space.ndim
        names = ["id", "score", "class", "voxels"]
        for unit, _ in self._units(micrometres):
            names.append(f"{_SIZES[ndim]}_{unit}{ndim}")
            names += [f"{part}_{axis}_{unit}" for part in ("centroid", "box_low", "box_high") for axis in "xyz"]
        return names

    def _units(self, micrometres: bool | None) -> list[tuple[str, float]]:
        """Units of length and how many of each are in a millimetre."""
        if micrometres is None:
            micrometres = max(self.space.spacing) < MICROSCOPIC_MM
        return [("mm", 1.0), *([("um", 1000.0)] if micrometres else [])]

    def on(self, space: Space) -> InstancePrediction:
        """The same instances and candidates on another grid of the same world, each voxel asking the nearest of ours.

        For grids along the same axes boxes stay exact; on an oblique one they grow to hold theirs.
        """
        if space.is_close(self.space, tolerance=1e-6):
            return self
        moved = _moved(self.instances, self.space, space)
        lazy = LabelVolume(moved, space.shape) if isinstance(self.label_volume, LabelVolume) else None
        candidates = None if self.candidates is None else _moved(self.candidates, self.space, space)
        return InstancePrediction.from_instances(self.name, space, moved, lazy, candidates=candidates)

    def visible(self) -> InstancePrediction:
        """Those of which the label volume shows a voxel: the others lie wholly under better ones, or between voxels."""
        shown = np.zeros(len(self) + 1, dtype=bool)
        lazy = isinstance(self.label_volume, LabelVolume)
        blocks = paint_blocks(self.instances, self.space.shape, (_BLOCK,) * self.space.ndim)
        for block in (block for _, block in blocks) if lazy else self.label_volume:  # what is painted isn't once more
            shown[block] = True
        if shown[1:].all():
            return self
        kept = self.instances.take(np.flatnonzero(shown[1:]))
        volume = LabelVolume(kept, self.space.shape) if lazy else None
        return InstancePrediction.from_instances(self.name, self.space, kept, volume, candidates=self.candidates)


def _moved(instances: Instances, source: Space, space: Space) -> Instances:
    """Instances on the grid `source` on the grid `space`."""
    # our index = matrix @ their index + offset
    offset = source.to_index(space.to_world(np.zeros(space.ndim)))
    matrix = (source.to_index(space.to_world(np.eye(space.ndim))) - offset).T
    corners = space.to_index(source.to_world(_corners(instances.boxes.astype(np.float64))))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)
    ndim = space.ndim
    crops = [PackedCrops.pack([_regrid(crop, matrix, offset, space.shape)], ndim) for crop in instances.crops]
    return Instances(boxes.astype(np.float32), instances.scores, instances.classes, PackedCrops.join(crops, ndim))


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every corner of each box, `(K, 2 * ndim) -> (K, 2 ** ndim, ndim)`."""
    ndim = boxes.shape[1] // 2
    columns = [[axis + ndim * side for axis, side in enumerate(sides)] for sides in product((0, 1), repeat=ndim)]
    return boxes[:, np.array(columns)]


def _regrid(crop: Crop, matrix: NDArray[np.floating], offset: NDArray[np.floating], shape: Sequence[int]) -> Crop:
    """One mask on a grid whose index `i` is ours at `matrix @ i + offset`; a mask that leaves it is empty."""
    window, mask = crop
    edges = np.array([[part.start - 0.5 for part in window] + [part.stop - 0.5 for part in window]])
    corners = (_corners(edges)[0] - offset) @ np.linalg.inv(matrix).T
    low = np.clip(np.floor(corners.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1, low, shape).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    start = np.array([part.start for part in window])
    # half rounds up, as in a voxel that spans i - 0.5 up to, without, i + 0.5
    places = np.floor(grid @ matrix.T + offset + 0.5).astype(int) - start
    inside = ((places >= 0) & (places < mask.shape)).all(axis=-1)
    found = np.zeros(grid.shape[:-1], dtype=bool)
    found[inside] = mask[tuple(places[inside].T)]
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), found

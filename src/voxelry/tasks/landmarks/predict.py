"""What the task answers for one image, and its way into a landmark file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxelry.core.choice import check_choice
from voxelry.core.space import Space
from voxelry.io.points.landmarks import LandmarkSet

__all__ = ["LandmarkPrediction", "to_landmark_set"]


@dataclass(frozen=True)
class LandmarkPrediction:
    """Named points of one image.

    Attributes:
        name: the case.
        names: `N` landmark names.
        index: `(N, ndim)` index coordinates on `space`, array order; NaN where nothing was found.
        world: `(N, 3)` the same points in mm, RAS+.
        spread_mm: `(N,)` root of the heatmap's total variance about its peak, in mm; not calibrated.
        radii_mm: `(N, levels)` radius that holds the truth with each probability of `levels`.
        uncertainty_mm: `(N,)` the radius of the highest level.
        presence: `(N,)` probability in [0, 1] that the landmark is in the image.
        levels: the probabilities of `radii_mm`, growing.
        space: the grid that was predicted on.
    """

    name: str
    names: tuple[str, ...]
    index: NDArray[np.float32]
    world: NDArray[np.float64]
    spread_mm: NDArray[np.float32]
    radii_mm: NDArray[np.float32]
    presence: NDArray[np.float32]
    levels: tuple[float, ...]
    space: Space

    @property
    def uncertainty_mm(self) -> NDArray[np.float32]:
        """Radius in mm that holds the truth with the highest probability of `levels`, `(N,)`."""
        return self.radii_mm[:, -1]

    def radius(self, level: float) -> NDArray[np.float32]:
        """Radius in mm, `(N,)`, that holds the truth with probability `level`.

        Raises:
            SettingError: `level` is not one of `levels`.
        """
        check_choice("level", level, self.levels)
        return self.radii_mm[:, self.levels.index(level)]


def to_landmark_set(prediction: LandmarkPrediction, *, presence_threshold: float = 0.0) -> LandmarkSet:
    """A prediction as the record that `voxelry.io.write_landmarks` takes.

    Args:
        presence_threshold: points less likely to be there than this are written as absent.
    """
    absent = prediction.presence < presence_threshold
    world = np.where(absent[:, None], np.nan, prediction.world)
    return LandmarkSet(
        names=prediction.names,
        world=world,
        extras={
            "uncertainty_mm": prediction.uncertainty_mm.astype(np.float64),
            "presence": prediction.presence.astype(np.float64),
        },
    )

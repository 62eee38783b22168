"""A volume where a model sees it: as it lies or, of one that was trained on registered scans, in their common frame."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxelry.bundle.bundle import Bundle
from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.prepare.source import check_template, patient_frame
from voxelry.data.preprocess import move
from voxelry.data.sample import Sample
from voxelry.data.slices.augment import move_space

__all__ = ["Placed", "place"]

log = logging.getLogger("voxelry")


@dataclass(frozen=True)
class Placed:
    """A volume in the world of a model.

    Attributes:
        own: as it was read, with its mask as labels, if there is one.
        prepared: what the network sees of it.
        motion: `(4, 4)` from the world that clicks are given in to the model's.
        home: `(4, 4)` from the model's world to that of the answer, and the grid of the answer.
        limits: the template's grid, where the volume was registered to it.
    """

    own: Sample
    prepared: Sample
    motion: NDArray[np.float64]
    home: tuple[NDArray[np.float64], Space]
    limits: Space | None = None

    def points(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Clicks `(N, 3)` in the model's world, in mm.

        Raises:
            DataError: one is beyond the template.
        """
        found = world @ self.motion[:3, :3].T + self.motion[:3, 3]
        for given, point in zip(world, found, strict=True):
            if self.limits is not None and not self.limits.contains(np.asarray(self.limits.to_index(point))):
                told = ", ".join(f"{value:g}" for value in given)
                raise DataError(f"{self.own.source}: the click at {told} mm is beyond the template of the model")
        return found

    def normal(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        """The normal `(3,)` of a plane after the motion."""
        turned: NDArray[np.float64] = np.linalg.inv(self.motion[:3, :3]).T @ plane
        return turned


def place(bundle: Bundle, sample: Sample, path: Path | None) -> Placed:
    """Bring a volume into the world of a model: registered to its template, if it has one and the volume isn't there.

    Args:
        bundle: the model's.
        sample: the volume, not preprocessed, perhaps with a mask as labels.
        path: its file. `volumes/NAME.nii.gz` of a folder that was prepared with a template lies in its frame.

    Raises:
        DataError: it can't be registered, or was registered to another template.
    """
    template, bare = bundle.template, sample.replace(labels=None)
    known = None if path is None else patient_frame(path)
    if known is not None and path is not None:
        check_template(path.parent.parent, template)
    if template is None or known is not None:
        home = (np.eye(4), sample.space) if known is None else known
        return Placed(sample, bundle.preprocess(bare), np.eye(4), home)
    motion = template.motion(bare)
    back = np.asarray(np.linalg.inv(motion), dtype=np.float64)
    own = sample.replace(space=move_space(sample.space, motion))
    prepared = bundle.preprocess(move(bundle.preprocess.cleaned(own.replace(labels=None)), template.grid))
    log.info("%s: registered to the template of the model; the answer lies in the scan's own frame", sample.source)
    return Placed(own, prepared, motion, (back, sample.space), template.grid)

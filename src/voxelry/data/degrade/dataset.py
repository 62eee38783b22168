"""Good volumes as pairs: each is the target, and what a worse scanner would have made of it the image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from voxelry.data.dataset import VolumeDataset
from voxelry.data.degrade import Degrade
from voxelry.data.layouts.case import Case
from voxelry.data.preprocess.normalise import check_values
from voxelry.data.sample import Sample

__all__ = ["DegradedDataset"]


class DegradedDataset(VolumeDataset):
    """Samples whose image is degraded from their target, after the target is cut to a patch and augmented.

    Args:
        cases: of the good volumes.
        degrade: what is done to them.
        redraw: whether each case is degraded anew in every epoch, as suits training; otherwise always in the same
            way, which depends on its name and the seed alone.
        settings: as for `VolumeDataset`. A patch is degraded by itself, so give it a margin for what reaches beyond
            (ringing, rays); a patch with context is cut from the degraded whole.

    Raises:
        DataError, FileError: when a case is read that isn't finite or is constant; one line naming the file.
    """

    def __init__(self, cases: Sequence[Case], *, degrade: Degrade, redraw: bool = False, **settings: Any):
        super().__init__(cases, **settings)
        self.degrade = degrade
        self.redraw = redraw

    def read(self, case: Case) -> Sample:
        """A case as it is in its files, the good image only."""
        sample = super().read(case)
        check_values(sample.image, case.image)
        return sample

    def altered(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """The augmented volume as the target, and the image degraded from it."""
        moved = super().altered(sample.replace(target=sample.image), generator)
        return self.degrade.apply(moved, generator if self.redraw else self._fixed(sample))

    def still(self, index: int) -> Sample:
        """The whole of case `index`, without augmentation and degraded in its own fixed way."""
        sample = self.preprocessed(index)
        return self.degrade.apply(sample.replace(target=sample.image), self._fixed(sample))

    def _fixed(self, sample: Sample) -> np.random.Generator:
        digest = hashlib.sha256(sample.name.encode()).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest[:8], "little")])

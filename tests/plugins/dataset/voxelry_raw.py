"""Volumes that are nothing but their voxels, whose size and shape everybody in the laboratory knows."""

from pathlib import Path

import numpy as np

from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.io import Image


class RawDataset(VolumeDataset):
    """Files of `size` x `size` x `size` 16-bit voxels of 2 mm."""

    def __init__(self, cases, *, size: int = 16, **settings):
        super().__init__(cases, **settings)
        self.size = size

    def read_volume(self, path: Path) -> Image:
        voxels = np.fromfile(path, "<i2").reshape(1, self.size, self.size, self.size)
        return Image(voxels, Space.from_spacing(voxels.shape[1:], 2.0), path)

"""Small volumes with known objects, for the tests of the crop index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from voxelry.core.space import Space
from voxelry.io import write_image

Objects = dict[int, tuple[slice, ...]]

OBJECTS: Objects = {  # id -> voxels, in a volume of 20 x 24 x 28
    2: np.s_[2:6, 3:9, 4:12],
    5: np.s_[7:12, 10:14, 10:19],  # crosses the border of crops of 8 x 12 x 14
    9: np.s_[18:20, 20:24, 20:28],  # ends with the volume
    11: np.s_[15:16, 2:3, 2:3],  # one voxel
}


@pytest.fixture
def objects() -> Objects:
    return OBJECTS


@pytest.fixture
def oblique() -> Space:
    """Turned, mirrored and anisotropic, 20 x 24 x 28."""
    turn, tilt = np.deg2rad(20), np.deg2rad(-12)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    rotation = rotation @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.zeros((4, 4))
    affine[:3, :3] = rotation @ np.diag([-2.0, 0.7, 0.9])[:, ::-1]
    affine[:, 3] = [-30, 12, 55, 1]
    return Space((20, 24, 28), affine)


@pytest.fixture
def write_volumes(tmp_path: Path, oblique: Space) -> Callable[..., Path]:
    """Writes `root/volumes` and `root/instances` in the layout and format that are asked for."""

    def write(names: tuple[str, ...] = ("a", "b", "c"), *, suffix: str = ".nii.gz", channels: int = 1) -> Path:
        root = tmp_path / "data"
        for number, name in enumerate(names):
            generator = np.random.default_rng(number)
            image = generator.integers(0, 4000, (channels, *oblique.shape)).astype(np.uint16)
            ids = np.zeros((1, *oblique.shape), np.uint16)
            for label, voxels in OBJECTS.items():
                ids[0][voxels] = label
            write_image(root / "volumes" / f"{name}{suffix}", image, oblique)
            write_image(root / "instances" / f"{name}{suffix}", ids, oblique)
        return root

    return write

"""A landmark network that is told where the image ends, on an oblique, mirrored, anisotropic grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.context import border_distances
from voxelry.data.patches import crop
from voxelry.data.sample import Batch, Sample
from voxelry.tasks.landmarks import LandmarkTask

SHAPE = (10, 16, 20)
SPACING = (3.0, 1.2, 0.8)


def space() -> Space:
    affine = np.diag([-3.0, 1.2, -0.8, 1.0])
    affine[:3, :3] = np.linalg.qr(np.array([[9, 1, 1], [-1, 9, 2], [0, -2, 9.0]]))[0] @ affine[:3, :3]
    affine[:3, 3] = (12.0, -30.0, 7.5)
    return Space(SHAPE, affine)


class AtPlace(nn.Module):
    """Answers a peak where the distances to the three low borders are those of a point, in mm."""

    ndim = 3

    def __init__(self, point: tuple[float, float, float], unit: float):
        super().__init__()
        self.point, self.unit = point, unit
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        low = x[:, 1::2] * self.unit
        offset = low - torch.tensor(self.point).reshape(1, 3, 1, 1, 1)
        return -self.scale * offset.square().sum(dim=1, keepdim=True)


def batch_of(borders: bool = False) -> Batch:
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    sample = Sample(image, space(), "case", landmarks=torch.tensor([[4.0, 7.0, 9.0]]), landmark_names=("tip",))
    return collate([sample.replace(borders=border_distances(space())) if borders else sample])


def task_at(point: tuple[float, float, float], **settings: object) -> LandmarkTask:
    return LandmarkTask(AtPlace(point, 20.0), landmark_names=["tip"], sigma=2.0, borders=20.0, **settings)


def test_a_whole_image_tells_its_borders_itself():
    mm = tuple(step * (index + 0.5) for step, index in zip(SPACING, (4, 7, 9), strict=True))
    task = task_at(mm)
    for batch in (batch_of(), batch_of(borders=True)):
        (found,) = task.predict(batch)
        np.testing.assert_allclose(found.index, [[4, 7, 9]], atol=0.05)
        np.testing.assert_allclose(found.world, space().to_world(np.array([[4.0, 7.0, 9.0]])), atol=0.1)
    elsewhere = task_at((mm[0], mm[1], mm[2] + 4)).training_loss(batch_of(borders=True))["loss"]
    assert task.training_loss(batch_of(borders=True))["loss"] < 0.5 * elsewhere
    assert_close(task.heatmaps(batch_of()), task.heatmaps(batch_of(borders=True)))


def test_windows_and_tiles_are_told_those_of_the_whole():
    mm = tuple(step * (index + 0.5) for step, index in zip(SPACING, (4, 7, 9), strict=True))
    (found,) = task_at(mm, tile_size=8, tile_overlap=0.5).predict(batch_of())
    np.testing.assert_allclose(found.index, [[4, 7, 9]], atol=0.05)
    whole = Sample(torch.zeros(1, *SHAPE), space(), "case", borders=border_distances(space()))
    (found,) = task_at(mm).predict(collate([crop(whole, (2, 3, 5), (6, 8, 10))]))
    np.testing.assert_allclose(found.index, [[2, 4, 4]], atol=0.05)


def test_in_a_mirror_image_the_low_border_is_the_high_one():
    """What lies 5 mm from the low border of every axis lies there in the mirror, too: two peaks, not one."""
    task = task_at((5.0, 5.0, 5.0), ensemble_flips=(2,))
    maps = task.heatmaps(batch_of())[0, 0]
    torch.testing.assert_close(maps, maps.flip(2), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("settings", [{"borders": 0.0}, {"borders": 20.0, "refine": 8}])
def test_a_unit_of_no_length_and_a_second_pass_are_refused(settings):
    with pytest.raises(SettingError, match="borders"):
        LandmarkTask(nn.Conv3d(7, 1, 1), landmark_names=["tip"], ndim=3, **settings)

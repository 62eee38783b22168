"""Pointmaps are exact for every axis and for oblique planes, and unknown pixels stay unknown."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.slices.cut import axis_plane, oblique_plane
from voxelry.data.slices.pointmaps import PointmapNormaliser, masked_pointmap, pointmap
from voxelry.ops.pointmaps import resize_pointmap


@pytest.fixture
def space() -> Space:
    """7 x 9 x 11, oblique, mirrored, anisotropic."""
    turn, _ = np.linalg.qr(np.array([[1.0, 0.3, -0.2], [-0.1, 1.0, 0.4], [0.2, -0.3, 1.0]]))
    affine = np.eye(4)
    affine[:3, :3] = turn * (2.5, -0.7, 1.1)
    affine[:3, 3] = (13.0, -41.0, 870.0)
    return Space((7, 9, 11), affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_pixel_has_its_voxels_world_position(axis, space):
    plane = axis_plane(space, axis, 5)
    points = pointmap(plane)
    assert points.shape == (*plane.shape, 3)
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            voxel = [row, column]
            voxel.insert(axis, 5)
            expected = space.affine[:3, :3] @ voxel + space.affine[:3, 3]  # by hand, with the full affine
            np.testing.assert_allclose(points[row, column], expected, atol=1e-9)


def test_an_oblique_plane_is_exact_too(space):
    centre, normal = np.array([10.0, -40.0, 880.0]), np.array([0.6, -0.3, 0.9])
    plane = oblique_plane(centre, normal, spacing=(1.3, 0.4), shape=(5, 9))
    points = pointmap(plane)
    np.testing.assert_allclose((points - centre) @ normal, 0, atol=1e-9)
    np.testing.assert_allclose(points[2, 4], centre, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(points[1:] - points[:-1], axis=-1), 1.3)
    np.testing.assert_allclose(np.linalg.norm(points[:, 1:] - points[:, :-1], axis=-1), 0.4)


def test_a_volume_has_a_pointmap_as_well(space):
    np.testing.assert_allclose(pointmap(space)[3, 2, 1], space.to_world(np.array([3.0, 2.0, 1.0])))


def test_what_lies_outside_of_the_mask_is_unknown(space):
    plane = axis_plane(space, 0, 2)
    region = torch.zeros(plane.shape, dtype=torch.bool)
    region[2:4, 3:9] = True
    stored = masked_pointmap(plane, region)
    assert stored.shape == (3, 9, 11)
    assert torch.equal(torch.isfinite(stored), region.expand(3, -1, -1))
    np.testing.assert_allclose(stored[:, 3, 4], pointmap(plane)[3, 4], rtol=1e-6)
    with pytest.raises(SettingError, match="region"):
        masked_pointmap(plane, region[:-1])


def test_resizing_a_full_map_is_the_map_of_the_resized_grid(space):
    plane = axis_plane(space, 2, 3)
    whole = torch.ones(plane.shape, dtype=torch.bool)
    larger = resize_pointmap(masked_pointmap(plane, whole), (14, 18))
    expected = torch.from_numpy(pointmap(plane.resize((14, 18)))).movedim(-1, 0).float()
    torch.testing.assert_close(larger[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=2e-3, rtol=0)  # edges repeat


def test_resizing_does_not_bleed_zeros():
    far = torch.full((3, 12, 12), torch.nan)
    far[:, 3:9, 4:10] = 1000.0
    for shape in ((24, 24), (7, 5), (12, 12), (30, 6)):
        resized = resize_pointmap(far, shape)
        known = torch.isfinite(resized).all(dim=0)
        assert known.any()
        assert not known.all()
        torch.testing.assert_close(resized[:, known], torch.full((3, int(known.sum())), 1000.0), atol=1e-3, rtol=0)
    assert torch.isnan(resize_pointmap(torch.full((3, 4, 4), torch.nan), (8, 8))).all()
    with pytest.raises(SettingError, match="coverage"):
        resize_pointmap(far, (4, 4), coverage=0.0)


def test_normalisers_know_a_frame_and_a_cloud():
    frame = PointmapNormaliser.of_frame((10.0, 20.0, 30.0), 80.0)
    corner = torch.tensor([50.0, -20.0, 70.0]).reshape(3, 1, 1)
    assert frame.normalise(corner).flatten().tolist() == [0.5, -0.5, 0.5]
    points = torch.tensor([[0.0, 4.0, 2.0, torch.nan], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]).reshape(3, 2, 2)
    assert PointmapNormaliser.of_points(points, method="extent") == PointmapNormaliser((2.0, 0.0, 1.0), 4.0)
    assert PointmapNormaliser.of_points(points) == PointmapNormaliser((2.0, 0.0, 1.0), 4 / 3)
    assert PointmapNormaliser(**frame.settings()) == frame
    with pytest.raises(DataError, match="NaN only"):
        PointmapNormaliser.of_points(torch.full((3, 2, 2), torch.nan))
    with pytest.raises(DataError, match="no scale"):
        PointmapNormaliser.of_points(torch.zeros(3, 2, 2))
    with pytest.raises(SettingError, match="scale"):
        PointmapNormaliser((0.0, 0.0, 0.0), 0.0)

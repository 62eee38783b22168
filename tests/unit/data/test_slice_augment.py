"""Movements of slices: what each setting does, and that the settings are checked."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.slices.augment import SliceAugment, SliceMovement, move_space
from voxelry.data.slices.cut import SliceSample, oblique_plane
from voxelry.data.slices.pointmaps import masked_pointmap, pointmap

STILL = {"rotation": 0.0, "scale": 0.0, "turn": 0.0, "zoom": 0.0, "shift": 0.0}


def example() -> SliceSample:
    plane = oblique_plane((10.0, -5.0, 30.0), (0.2, 0.3, 1.0), spacing=(1.5, 0.5), shape=(20, 24))
    mask = torch.zeros(plane.shape, dtype=torch.bool)
    mask[5:12, 6:15] = True
    image = torch.from_numpy(np.random.default_rng(0).random((1, 20, 24)).astype(np.float32))
    return SliceSample(
        image=image, space=plane, name="a", mask=mask, click=torch.tensor([8.0, 9.0]),
        pointmap=masked_pointmap(plane, mask), volume_space=Space.from_spacing((10, 11, 12), 2.0),
    )  # fmt: skip


def test_without_movement_nothing_changes(rng):
    sample = example()
    for augment in (SliceAugment(probability=0.0), SliceAugment(**STILL)):
        moved, motion = augment(sample, rng)
        np.testing.assert_allclose(motion, np.eye(4), atol=1e-12)
        assert torch.equal(moved.image, sample.image)
        assert torch.equal(moved.mask, sample.mask)
        assert moved.space.is_close(sample.space)


def test_the_world_turns_about_the_click_and_takes_everything_along(rng):
    sample = example()
    moved, motion = SliceAugment(**{**STILL, "rotation": 40.0, "scale": 0.3, "mirror": 1.0})(sample, rng)
    assert np.linalg.det(motion[:3, :3]) < 0
    np.testing.assert_allclose(moved.click_world, sample.click_world, atol=1e-6)
    assert torch.equal(moved.image, sample.image)
    expected = pointmap(sample.space) @ motion[:3, :3].T + motion[:3, 3]
    np.testing.assert_allclose(pointmap(moved.space), expected, atol=1e-9)
    inside = sample.mask.numpy()
    np.testing.assert_allclose(moved.pointmap.numpy()[:, inside], expected[inside].T, atol=1e-4)
    assert moved.volume_space.is_close(move_space(sample.volume_space, motion))


def test_a_view_turns_in_its_plane_in_millimetres():
    plane = example().space
    movement = SliceMovement(np.eye(4), np.pi / 2, 1.0, np.zeros(2))
    turned = movement.view(plane)
    np.testing.assert_allclose(turned.to_world(np.array([9.5, 11.5])), plane.to_world(np.array([9.5, 11.5])))
    np.testing.assert_allclose(turned.spacing, plane.spacing)
    np.testing.assert_allclose(turned.directions[:, 0], plane.directions[:, 1], atol=1e-9)
    zoomed = SliceMovement(np.eye(4), 0.0, 2.0, np.array([3.0, 0.0])).view(plane)
    np.testing.assert_allclose(zoomed.spacing, (3.0, 1.0))
    shift = zoomed.to_world(np.array([9.5, 11.5])) - plane.to_world(np.array([9.5, 11.5]))
    np.testing.assert_allclose(shift, 3.0 * plane.directions[:, 0])


def test_labels_stay_whole_numbers_and_the_pointmap_follows_the_pixels(rng):
    moved, motion = SliceAugment(**{**STILL, "turn": 30.0, "zoom": 0.3, "shift": 2.0})(example(), rng)
    np.testing.assert_allclose(motion, np.eye(4))
    assert moved.mask.dtype == torch.bool
    assert torch.equal(torch.isfinite(moved.pointmap).all(dim=0), moved.mask)
    inside = moved.mask.numpy()
    assert inside.any()
    np.testing.assert_allclose(moved.pointmap.numpy()[:, inside].T, pointmap(moved.space)[inside], atol=1e-4)


def test_intensities_change_without_the_geometry(rng):
    augment = SliceAugment(probability=0.0, intensity={"noise": 0.2, "intensity_probability": 1.0})
    sample = example()
    moved, _ = augment(sample, rng)
    assert not torch.equal(moved.image, sample.image)
    assert moved.space.is_close(sample.space)
    assert torch.equal(moved.mask, sample.mask)
    assert SliceAugment(**augment.settings()) == augment


@pytest.mark.parametrize(
    "settings",
    [{"rotation": -1.0}, {"mirror": 1.5}, {"scale": True}, {"zoom": float("nan")}, {"intensity": {"noise": -1}}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingError, match=r"expected"):
        SliceAugment(**settings)

"""Augmentation: worked cases. The laws that hold for every case are in tests/properties/test_augment.py."""

import json

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.augment import Augment, IntensityAugment, SpatialAugment, find_swap_pairs
from voxelry.data.sample import Sample
from voxelry.ops.masks import mask_boxes

STILL = {"rotation": 0.0, "scale": 0.0, "shift_fraction": 0.0}
QUIET = {"gamma": 0.0, "contrast": 0.0, "brightness": 0.0, "bias_field": 0.0, "noise": 0.0}


def oblique_space(shape, spacing):
    """Turned about every world axis, with its second array axis reversed."""
    ndim = len(shape)
    a, b = np.deg2rad(20), np.deg2rad(-12)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = Space.from_spacing(shape, spacing, (5, -30, 12)).reorder(range(ndim), [False, True, False][:ndim]).affine
    affine = affine.copy()
    affine[:3] = turn @ affine[:3]
    return Space(shape, affine)


def make_sample(ndim=3, **changes):
    shape, spacing = (18, 20, 26)[-ndim:], (3.0, 1.2, 0.8)[-ndim:]
    generator = np.random.default_rng(5)
    masks = torch.zeros(shape, dtype=torch.int64)
    masks[(slice(6, 9),) * ndim] = 1
    masks[(slice(10, 13),) * ndim] = 2
    sample = Sample(
        image=torch.from_numpy(generator.random((2, *shape), dtype=np.float32)),
        space=oblique_space(shape, spacing),
        name="case",
        landmarks=torch.tensor([[7.0] * ndim, [11.0] * ndim, [float("nan")] * ndim, [8.0] * ndim]),
        landmark_names=("left_eye", "right_eye", "gone", "nose"),
        labels=(masks > 0).long() * 4,
        masks=masks,
        boxes=mask_boxes(masks, 2),
    )
    return sample.replace(**changes)


@pytest.mark.parametrize("ndim", [2, 3])
def test_nothing_to_do_returns_the_very_input(ndim, rng):
    sample = make_sample(ndim)
    assert Augment(**STILL, **QUIET)(sample, rng) is sample
    assert Augment(movement_probability=0, intensity_probability=0)(sample, rng) is sample


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_flip_is_exact_and_reverses_everything(ndim, rng):
    sample = make_sample(ndim)
    axes = list(range(ndim))
    flipped = Augment(**STILL, **QUIET, flip=1.0, swap_pairs=())(sample, rng)
    assert torch.equal(flipped.image, sample.image.flip([a + 1 for a in axes]))
    assert torch.equal(flipped.labels, sample.labels.flip(axes))
    assert torch.equal(flipped.masks, sample.masks.flip(axes))
    last = torch.tensor(sample.space.shape) - 1
    torch.testing.assert_close(flipped.landmarks, last - sample.landmarks, equal_nan=True)
    torch.testing.assert_close(
        flipped.boxes, torch.cat([last - sample.boxes[:, ndim:], last - sample.boxes[:, :ndim]], 1)
    )
    assert flipped.space is sample.space


def test_the_mirror_is_the_patients_left_right_and_swaps_names(rng):
    sample = make_sample(3)
    world = [axis for axis, _ in sample.space.closest_axes()]
    mirrored = Augment(**STILL, **QUIET, mirror=1.0, swap_labels=[(4, 0)])(sample, rng)
    axis = world.index(0)
    assert torch.equal(mirrored.image, sample.image.flip(axis + 1))
    assert torch.equal(mirrored.labels, 4 - sample.labels.flip(axis))
    expected = sample.landmarks[[1, 0, 2, 3]].clone()
    expected[:, axis] = sample.space.shape[axis] - 1 - expected[:, axis]
    torch.testing.assert_close(mirrored.landmarks, expected, equal_nan=True)

    flip = [0.0, 0.0, 0.0]
    flip[world.index(2)] = 1.0  # upside down: left stays left
    assert Augment(**STILL, flip=flip)(sample, rng).landmarks[0, axis] == sample.landmarks[0, axis]


def test_a_sagittal_plane_has_no_sides_to_mirror(rng):
    affine = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    sample = make_sample(2).replace(space=Space((20, 26), affine))
    assert Augment(**STILL, **QUIET, mirror=1.0)(sample, rng) is sample


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotation_is_rigid_in_millimetres(ndim, rng):
    sample = make_sample(ndim)
    moved = SpatialAugment(rotation=40, scale=0, shift_fraction=0, outside="keep")(sample, rng)
    before, after = (sample.space.to_world(s.landmarks[[0, 1, 3]].double().numpy()) for s in (sample, moved))
    assert np.abs(before - after).max() > 0.5
    for i, j in ((0, 1), (0, 2), (1, 2)):
        length = np.linalg.norm(before[i] - before[j])
        assert np.linalg.norm(after[i] - after[j]) == pytest.approx(length, abs=1e-4)


def test_rotation_is_rigid_on_a_sheared_grid(rng):
    affine = np.array([[0, 0, 1.0, 0], [0, 1.5, 0, 0], [3.0, 0.8, 0, 0], [0, 0, 0, 1]])  # a tilted gantry
    sample = make_sample(3, space=Space((18, 20, 26), affine))
    moved = SpatialAugment(rotation=30, scale=0, shift_fraction=0, outside="keep")(sample, rng)
    before, after = (sample.space.to_world(s.landmarks[[0, 3]].double().numpy()) for s in (sample, moved))
    assert np.linalg.norm(after[0] - after[1]) == pytest.approx(np.linalg.norm(before[0] - before[1]), abs=1e-4)


def test_one_rotation_axis_leaves_the_others_alone(rng):
    sample = make_sample(3)
    moved = SpatialAugment(rotation=(30, 0, 0), scale=0, shift_fraction=0, outside="keep")(sample, rng)
    torch.testing.assert_close(moved.landmarks[:, 0], sample.landmarks[:, 0], equal_nan=True)
    assert (moved.landmarks[0, 1:] - sample.landmarks[0, 1:]).abs().max() > 0.1


def test_shift_is_in_millimetres(rng):
    sample = make_sample(3)
    moved = SpatialAugment(rotation=0, scale=0, shift_fraction=0, shift=(6.0, 0, 0), outside="keep")(sample, rng)
    draws = moved.landmarks[0] - sample.landmarks[0]
    assert draws[0].abs() <= 2.0  # 6 mm of 3 mm voxels
    assert draws[0] != 0
    assert torch.equal(draws[1:], torch.zeros(2))


def test_what_leaves_the_grid_is_dropped_or_kept():
    sample = make_sample(3, labels=None)
    far = {"rotation": 0, "scale": 0, "shift_fraction": 0, "shift": (0, 0, 14.0), "swap_pairs": ()}
    for seed in range(50):
        nan = SpatialAugment(**far)(sample, np.random.default_rng(seed))
        keep = SpatialAugment(**far, outside="keep")(sample, np.random.default_rng(seed))
        bare = SpatialAugment(**far)(sample.replace(masks=None), np.random.default_rng(seed))
        if len(nan.boxes) == 1:
            break
    else:
        pytest.fail("no seed moved one of the two instances out")
    assert nan.masks.unique().tolist() == [0, 1]
    assert bare.masks is None
    torch.testing.assert_close(nan.boxes, mask_boxes(nan.masks, 1))
    assert torch.isfinite(keep.landmarks[[0, 1, 3]]).all()
    outside = ~torch.from_numpy(sample.space.contains(keep.landmarks.numpy()))
    assert torch.equal(torch.isnan(nan.landmarks).any(dim=1), outside)
    assert outside[[0, 1, 3]].any()


@pytest.mark.parametrize("elastic", [0.0, 3.0])
def test_boxes_without_masks_enclose_the_moved_instances(elastic):
    sample = make_sample(3)
    augment = SpatialAugment(rotation=30, shear=10, shift_fraction=0, elastic=elastic, elastic_spacing=12)
    for seed in range(10):
        exact = augment(sample, np.random.default_rng(seed)).boxes
        loose = augment(sample.replace(masks=None), np.random.default_rng(seed)).boxes
        assert len(exact) == len(loose) == 2
        # the exact ones are counted in whole voxels
        assert (loose[:, :3] <= exact[:, :3] + 0.5).all()
        assert (loose[:, 3:] >= exact[:, 3:] - 0.5).all()


@pytest.mark.parametrize(
    ("fill", "expected"), [("minimum", (0.25, 0.5)), ("edge", (0.75, 0.5)), (0.125, (0.125, 0.125))]
)
def test_fill_comes_in_from_outside(fill, expected):
    image = torch.full((2, 8, 8), 0.5)
    image[0] = 0.75
    image[0, 4, 4] = 0.25
    labels = torch.full((8, 8), 3)
    sample = Sample(image, Space.from_spacing((8, 8)), "case", labels=labels)
    generator = np.random.default_rng(0)
    moved = SpatialAugment(rotation=0, scale=0, shift_fraction=0, shift=20.0, fill=fill)(sample, generator)
    assert moved.image[:, [0, 0, -1, -1], [0, -1, 0, -1]].T.tolist().count(list(expected)) >= 3
    assert (0 in moved.labels) == (fill != "edge")


def test_elastic_never_folds_however_strong(rng):
    sample = make_sample(3)
    movement = SpatialAugment(**STILL, elastic=500.0, elastic_spacing=8.0).draw(sample.space, rng)
    from voxelry.ops.resample import spline_grid

    field = spline_grid(torch.from_numpy(movement.displacement), sample.space.shape)
    jacobian = (
        torch.stack([torch.stack(torch.gradient(field[a])) for a in range(3)]) + torch.eye(3)[..., None, None, None]
    )
    determinants = torch.linalg.det(jacobian.permute(2, 3, 4, 0, 1))
    assert determinants.min() > 0
    assert determinants.max() > 1.2  # it does deform


def test_auto_pairs_find_the_two_sides():
    names = ("left_eye", "nose", "Right_eye", "femur L", "femur R", "brightness", "l1", "tibia_left")
    assert find_swap_pairs(names, "auto", 8) == [(0, 2), (3, 4)]
    assert find_swap_pairs((), "auto", 8) == []
    assert find_swap_pairs(names, [("nose", 5), (6, "l1")][:1], 8) == [(1, 5)]
    with pytest.raises(SettingError, match="swap_pairs: no landmark 'mouth'"):
        find_swap_pairs(names, [("nose", "mouth")], 8)
    with pytest.raises(SettingError, match="swap_pairs: expected each landmark once"):
        find_swap_pairs(names, [(0, 1), (1, 2)], 8)
    with pytest.raises(SettingError, match="swap_pairs: expected pairs"):
        find_swap_pairs(names, ["ab"], 8)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "setting", ["gamma", "contrast", "brightness", "bias_field", "noise", "blur", "ghosting", "spike"]
)
def test_every_intensity_change_changes_only_the_image_and_keeps_its_range(ndim, setting, rng):
    sample = make_sample(ndim)
    before = sample.image.clone()
    changed = IntensityAugment(**(QUIET | {setting: 0.5}), intensity_probability=1)(sample, rng)
    assert torch.equal(sample.image, before)  # the input is not written to
    assert changed.image.shape == before.shape
    assert changed.image.dtype == torch.float32
    assert (changed.image - before).abs().max() > 1e-3
    assert changed.image.min() >= 0
    assert changed.image.max() <= 1
    assert changed.replace(image=sample.image) == sample


def test_z_scores_keep_their_own_range(rng):
    sample = make_sample(3)
    sample = sample.replace(image=sample.image * 7 - 4)
    changed = IntensityAugment(intensity_probability=1, value_range=None)(sample, rng).image
    assert changed.min() >= sample.image.min() - 1e-5
    assert changed.max() <= sample.image.max() + 1e-5
    assert not torch.equal(changed, sample.image)


def test_a_constant_image_has_no_range_to_change(rng):
    sample = make_sample(2, image=torch.full((2, 20, 26), 3.0))
    assert IntensityAugment(intensity_probability=1, value_range=None)(sample, rng) is sample


def test_settings_are_plain_and_rebuild_it(rng):
    augment = Augment(
        rotation=(5, 10, np.float64(15)), flip=[0, 0.5, 0.5], swap_pairs=[("left_eye", 1)], noise=0.1, fill="edge"
    )
    settings = json.loads(json.dumps(augment.settings()))
    again = Augment(**settings)
    assert again.settings() == augment.settings()
    sample = make_sample(3)
    a, b = (which(sample, np.random.default_rng(3)) for which in (augment, again))
    assert torch.equal(a.image, b.image)
    assert torch.equal(torch.nan_to_num(a.landmarks), torch.nan_to_num(b.landmarks))
    assert repr(augment).startswith("Augment(movement_probability=1.0, rotation=[5, 10, 15.0]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotatoin": 5}, "unknown setting 'rotatoin'; did you mean 'rotation'"),
        ({"rotation": -5}, "rotation: expected 0 to 180"),
        ({"shear": 45}, "shear: expected 0 to 25"),
        ({"rotation": "wide"}, "rotation: expected a number"),
        ({"flip": (0.5, 2.0)}, "flip: expected 0 to 1"),
        ({"elastic_spacing": 0}, "elastic_spacing: expected"),
        ({"fill": "mean"}, "fill: expected"),
        ({"outside": "clip"}, "outside: expected"),
        ({"swap_pairs": "names"}, "swap_pairs: expected"),
        ({"noise": -1}, "noise: expected"),
        ({"noise": "much"}, "noise: expected"),
        ({"contrast": 1.5}, "contrast: expected"),
        ({"intensity_probability": 3}, "intensity_probability: expected"),
        ({"value_range": (1, 0)}, "value_range: expected"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=message) as caught:
        Augment(**settings)
    assert "\n" not in str(caught.value)


def test_a_setting_for_another_rank_is_named(rng):
    with pytest.raises(SettingError, match="rotation: expected 1 or 1 values"):
        SpatialAugment(rotation=(1, 2, 3))(make_sample(2), rng)
    with pytest.raises(SettingError, match="flip: expected 1 or 3 values"):
        SpatialAugment(flip=(0.5, 0.5))(make_sample(3), rng)

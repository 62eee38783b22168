from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.patches import Patches, crop
from voxelry.data.sample import Sample


def sample_of(shape, **fields) -> Sample:
    """Each voxel holds its own flat index, on an anisotropic, mirrored grid."""
    ndim = len(shape)
    space = Space.from_spacing(shape, (2.0, 0.5, 1.5)[:ndim]).reorder(range(ndim), [axis == 0 for axis in range(ndim)])
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    return Sample(image, space, "case", **fields)


@pytest.mark.parametrize("shape", [(12, 9), (7, 12, 9)])
def test_patches_show_the_image_where_it_is(shape, rng):
    sample = sample_of(shape)
    for _ in range(20):
        patch = Patches(4)(sample, rng)
        assert patch.image.shape == (1, *[4] * len(shape))
        start = sample.space.to_index(patch.space.to_world(np.zeros(len(shape))))
        window = tuple(slice(round(low), round(low) + 4) for low in start)
        assert torch.equal(patch.image[0], sample.image[0][window])


def test_every_position_is_drawn(rng):
    sample = sample_of((5, 6))
    corners = {float(Patches((4, 4), foreground=0.0)(sample, rng).image[0, 0, 0]) for _ in range(200)}
    assert corners == {0.0, 1.0, 2.0, 6.0, 7.0, 8.0}


def test_a_smaller_image_is_padded_evenly():
    sample = sample_of((3, 8), labels=torch.ones(3, 8, dtype=torch.int64), landmarks=torch.tensor([[1.0, 2.0]]))
    patch = Patches((6, 8))(sample, np.random.default_rng(0))
    assert patch.image.shape == (1, 6, 8)
    assert torch.equal(patch.image[0, 2:5], sample.image[0])
    assert patch.labels.sum() == 24
    assert_close(patch.space.to_world(patch.landmarks), sample.space.to_world(sample.landmarks), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [3, (2, 5, 4)])
def test_landmarks_are_in_their_foreground_patch(size, rng):
    landmarks = torch.tensor([[1.0, 2.0, 3.0], [torch.nan] * 3, [18.0, 17.0, 1.0], [50.0, 0.0, 0.0]])
    sample = sample_of((20, 20, 20), landmarks=landmarks)
    seen = set()
    for _ in range(60):
        patch = Patches(size, foreground=1.0)(sample, rng)
        present = torch.nonzero(~patch.landmarks.isnan().any(dim=1)).flatten().tolist()
        assert present
        seen.update(present)
        for index in present:
            assert_close(
                patch.space.to_world(patch.landmarks[index]), sample.space.to_world(landmarks[index]), atol=1e-4, rtol=0
            )
    assert seen == {0, 2}


def test_rare_classes_are_seen_as_often(rng):
    labels = torch.zeros(30, 30, dtype=torch.int64)
    labels[:15] = 1
    labels[29, 29] = 2
    sample = sample_of((30, 30), labels=labels)
    rare = sum(int((Patches(5, foreground=1.0)(sample, rng).labels == 2).any()) for _ in range(200))
    assert 70 < rare < 130
    assert all((Patches(5, foreground=1.0)(sample, rng).labels > 0).any() for _ in range(20))


def test_instances_and_bright_voxels_are_found(rng):
    masks = torch.zeros(40, 40, dtype=torch.int64)
    masks[30:33, 5:8] = 1
    boxes = torch.tensor([[29.5, 4.5, 32.5, 7.5]])
    sample = sample_of((40, 40), masks=masks, boxes=boxes)
    dark = Sample(torch.zeros(1, 40, 40), sample.space, "dark")
    bright = dark.replace(image=masks[None].float())
    for _ in range(20):
        assert len(Patches(6, foreground=1.0)(sample, rng).boxes) == 1
        assert Patches(6, foreground=1.0)(bright, rng).image.max() == 1
        assert Patches(6, foreground=1.0)(dark, rng).image.shape == (1, 6, 6)


def test_boxes_are_clipped_and_their_masks_renumbered():
    masks = torch.zeros(10, 10, dtype=torch.int64)
    masks[0:2, 0:2], masks[3:6, 3:6], masks[8:10, 4:8] = 1, 2, 3
    boxes = torch.tensor([[-0.5, -0.5, 1.5, 1.5], [2.5, 2.5, 5.5, 5.5], [7.5, 3.5, 9.5, 7.5]])
    sample = sample_of((10, 10), masks=masks, boxes=boxes)
    patch = crop(sample, (4, 4), (6, 6))
    assert patch.boxes.tolist() == [[-0.5, -0.5, 1.5, 1.5], [3.5, -0.5, 5.5, 3.5]]
    assert torch.unique(patch.masks).tolist() == [0, 1, 2]
    assert (patch.masks[0:2, 0:2] == 1).all()
    assert (patch.masks[4:6, 0:4] == 2).all()
    empty = crop(sample, (2, 7), (1, 3))
    assert empty.boxes.shape == (0, 4)
    assert not empty.masks.any()


def test_a_box_without_voxels_in_the_window_is_dropped():
    masks = torch.zeros(6, 6, dtype=torch.int64)
    masks[0, 0:4] = masks[0:4, 0] = 1  # an L, whose box covers what it doesn't
    sample = sample_of((6, 6), masks=masks, boxes=torch.tensor([[-0.5, -0.5, 3.5, 3.5]]))
    assert len(crop(sample, (2, 2), (2, 2)).boxes) == 0
    assert len(crop(sample, (0, 2), (2, 2)).boxes) == 1


@pytest.mark.parametrize("margin", [2, (1, 3)])
def test_a_margin_is_cut_for_the_augmentation_and_taken_off(margin):
    """The same draw with and without a margin is the same window in the end."""
    sample = sample_of((9, 12), landmarks=torch.tensor([[4.0, 5.0], [0.0, 0.0]]))
    for seed in range(10):
        plain = Patches((4, 6))(sample, np.random.default_rng(seed))
        patches = Patches((4, 6), margin=margin)
        wide = patches(sample, np.random.default_rng(seed))
        extra = np.asarray(margin) * 2
        assert wide.image.shape[1:] == tuple(np.array([4, 6]) + extra)
        assert (~wide.landmarks.isnan()).sum() >= (~plain.landmarks.isnan()).sum()
        trimmed = patches.trim(wide)
        assert torch.equal(trimmed.image, plain.image)
        assert trimmed.space.is_close(plain.space)
        assert_close(trimmed.landmarks, plain.landmarks, equal_nan=True)


def test_a_crop_is_a_copy():
    sample = sample_of((6, 6))
    crop(sample, (1, 1), (3, 3)).image.fill_(-1)
    assert sample.image.min() == 0


def test_settings():
    for size in (4, [3, 5]):
        patches = Patches(size, foreground=0.25)
        assert patches.settings() == {"size": size, "foreground": 0.25, "margin": 0, "fill": "zero", "context": False}
        assert Patches(**patches.settings()).settings() == patches.settings()
    for wrong in ({"size": 0}, {"size": (4, 2.5)}, {"size": True}, {"foreground": 1.5}, {"margin": -1}):
        with pytest.raises(SettingError):
            Patches(**{"size": 4, **wrong})
    with pytest.raises(SettingError, match="patch size: expected 1 or 2 values"):
        Patches((4, 4, 4))(sample_of((8, 8)), np.random.default_rng(0))


def test_padding_may_repeat_the_border(rng):
    image = torch.arange(2.0 * 3 * 4).reshape(1, 2, 3, 4) + 1
    sample = Sample(image, Space.from_spacing((2, 3, 4), (3, 1, 1)), "a", labels=torch.ones(2, 3, 4, dtype=torch.int64))
    patch = Patches((4, 3, 2), foreground=0.0, fill="edge")(sample, rng)
    assert patch.image.shape == (1, 4, 3, 2)
    assert torch.equal(patch.image[0, 0], patch.image[0, 1])
    assert torch.equal(patch.image[0, 3], patch.image[0, 2])
    assert patch.labels[0].sum() == patch.labels[3].sum() == 0
    with pytest.raises(SettingError, match="fill: expected one of zero, edge"):
        Patches(4, fill="mirror")

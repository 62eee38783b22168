"""Boxes of masks, masks on boxes, and label volumes painted from them."""

import math

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.ops.masks import (
    largest_component,
    mask_boxes,
    mask_crops,
    paste_mask,
)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_boxes_reach_from_edge_to_edge(ndim, dtype):
    masks = torch.zeros((6,) * ndim, dtype=dtype)
    masks[(slice(1, 4),) * ndim] = 1
    masks[(5,) * ndim] = 3
    boxes = mask_boxes(masks, 4)
    assert boxes[0].tolist() == [0.5] * ndim + [3.5] * ndim
    assert boxes[1].isnan().all()
    assert boxes[2].tolist() == [4.5] * ndim + [5.5] * ndim
    assert boxes[3].isnan().all()


def test_no_instances_give_no_boxes():
    assert mask_boxes(torch.zeros(4, 5, dtype=torch.int64), 0).shape == (0, 4)
    with pytest.raises(SettingError, match="masks: expected integer"):
        mask_boxes(torch.zeros(4, 5), 0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mask_of_one_value_fills_its_box_and_nothing_else(ndim):
    """Voxels 2 to 5 have their centres in the box; the last axis is longer than the others."""
    box = torch.tensor([1.5] * ndim + [5.5] * (ndim - 1) + [8.25])
    crop, window = paste_mask(torch.full((7,) * ndim, 0.75), box, (9,) * ndim)
    assert window == (*(slice(2, 6),) * (ndim - 1), slice(2, 9))
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, np.full((4,) * (ndim - 1) + (7,), 0.75, dtype=np.float32))


def test_a_ramp_is_pasted_to_the_sub_voxel():
    """Cells of half a voxel: cell k has its centre at low + (k + 1/2) / 2, whatever part of a voxel low is."""
    ramp = torch.arange(16.0)[:, None].expand(16, 4)
    for low in (0.0, 0.2, 0.5, 0.9):
        crop, window = paste_mask(ramp, torch.tensor([low, 0.0, low + 8, 2.0]), (12, 6))
        centres = np.arange(window[0].start, window[0].stop)
        expected = np.clip((centres - low) * 2 - 0.5, 0, 15)
        np.testing.assert_allclose(crop, np.repeat(expected[:, None], 2, axis=1), atol=1e-5)


def test_a_mask_the_size_of_its_box_is_copied():
    mask = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    crop, window = paste_mask(mask, np.array([0.5, 1.5, 2.5, 3.5, 5.5, 7.5]), (9, 9, 9))
    assert window == (slice(1, 4), slice(2, 6), slice(3, 8))
    np.testing.assert_allclose(crop, mask, atol=1e-6)


def test_a_box_over_the_edge_is_cut_not_squeezed():
    mask = torch.arange(8.0)[:, None].expand(8, 8)
    box = torch.tensor([-2.5, -2.5, 5.5, 5.5])
    whole, placed = paste_mask(mask, box + 4, (20, 20))
    assert placed == (slice(2, 10), slice(2, 10))
    crop, window = paste_mask(mask, box, (4, 20))
    assert window == (slice(0, 4), slice(0, 6))
    np.testing.assert_allclose(crop, whole[2:6, 2:8], atol=1e-5)


@pytest.mark.parametrize(
    "box",
    [
        [20.0, 0.0, 30.0, 4.0],  # outside
        [-9.0, 0.0, -3.0, 4.0],
        [1.1, 1.1, 1.9, 1.9],  # between two centres
        [4.0, 4.0, 1.0, 1.0],
        [2.0, 0.0, 2.0, 4.0],
        [math.nan, 0.0, 4.0, 4.0],
        [0.0, 0.0, math.inf, 4.0],
    ],
)
def test_a_box_without_a_voxel_has_an_empty_crop(box):
    crop, window = paste_mask(torch.ones(3, 3), torch.tensor(box), (8, 8))
    assert crop.size == 0
    assert crop.shape == np.zeros((8, 8))[window].shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_other_types(dtype):
    mask = torch.rand(5, 5).to(dtype)
    box = torch.tensor([0.25, 1.0, 6.0, 7.5])
    np.testing.assert_array_equal(paste_mask(mask, box, (8, 8))[0], paste_mask(mask.float(), box, (8, 8))[0])


SQUARES = torch.tensor([[-0.5, -0.5, 3.5, 3.5], [1.5, 1.5, 5.5, 5.5], [0.5, 0.5, 2.5, 2.5]])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_largest_component(ndim):
    """Corners don't connect; of two parts of one size the first stays."""
    crop = np.zeros((5,) * ndim, dtype=bool)
    crop[(slice(0, 2),) * ndim] = True
    crop[(slice(2, 5),) * ndim] = True
    kept = largest_component(crop)
    assert kept.sum() == 3**ndim
    crop[(slice(2, 5),) * ndim] = False
    crop[(slice(3, 5),) * ndim] = True
    assert largest_component(crop)[(0,) * ndim]
    assert largest_component(crop).sum() == 2**ndim
    assert not largest_component(np.zeros((2,) * ndim, dtype=bool)).any()


def test_the_threshold_itself_is_inside():
    for value, size in ((0.5, 16), (0.49, 0)):
        ((_, inside),) = mask_crops(torch.full((1, 2, 2), value), SQUARES[:1], (6, 6))
        assert inside.sum() == size


def test_no_masks():
    assert list(mask_crops(torch.zeros(0, 5, 5), torch.zeros(0, 4), (3, 3))) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: paste_mask(torch.ones(3, 3), torch.zeros(6), (8, 8)),
        lambda: paste_mask(torch.ones(0, 3), torch.zeros(4), (8, 8)),
        lambda: paste_mask(torch.ones(3, 3), torch.zeros(4), (8, 8, 8)),
        lambda: list(mask_crops(torch.ones(2, 3, 3), torch.zeros(1, 4), (8, 8))),
    ],
)
def test_what_does_not_fit_is_named(call):
    with pytest.raises(SettingError, match="expected"):
        call()

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelry.data.crops.grid import crop_starts, crops_showing, slabs


def test_the_last_crop_is_moved_back_to_end_with_the_axis():
    assert crop_starts(20, 8, 0).tolist() == [0, 8, 12]
    assert crop_starts(24, 8, 0).tolist() == [0, 8, 16]
    assert crop_starts(20, 8, 3).tolist() == [0, 5, 10, 12]


def test_an_axis_shorter_than_a_crop_has_one():
    assert crop_starts(5, 8, 0).tolist() == [0]


@given(size=st.integers(1, 60), crop=st.integers(1, 20), data=st.data())
def test_every_voxel_is_covered_and_no_crop_leaves_the_axis(size, crop, data):
    overlap = data.draw(st.integers(0, crop - 1))
    starts = crop_starts(size, crop, overlap)
    covered = {voxel for start in starts for voxel in range(start, min(start + crop, size))}
    assert covered == set(range(size))
    assert size < crop or starts[-1] + crop == size
    assert (np.diff(starts) > 0).all()


@given(ndim=st.sampled_from([2, 3]), seed=st.integers(0, 1000), min_visible=st.sampled_from([0.0, 0.3, 1.0]))
def test_pairs_are_those_of_every_crop_against_every_box(ndim, seed, min_visible):
    generator = np.random.default_rng(seed)
    crop = generator.integers(3, 7, ndim)
    shape = generator.integers(5, 16, ndim)
    starts = [crop_starts(int(a), int(b), int(generator.integers(0, b))) for a, b in zip(shape, crop, strict=True)]
    low = np.array([generator.integers(0, shape) for _ in range(6)]) - 0.5
    boxes = np.concatenate([low, low + generator.integers(1, 6, (6, ndim))], axis=1)
    expected = []
    for number, corner in enumerate(itertools.product(*starts)):
        edge = np.array(corner) - 0.5
        for owner, box in enumerate(boxes):
            shared = np.minimum(box[ndim:], edge + crop) - np.maximum(box[:ndim], edge)
            share = np.prod(shared) / np.prod(box[ndim:] - box[:ndim])
            if (shared > 0).all() and share >= min_visible - 1e-12:
                expected.append((number, owner))
    number, owner = crops_showing(starts, crop.tolist(), boxes, min_visible=min_visible)
    assert list(zip(number.tolist(), owner.tolist(), strict=True)) == expected


def test_no_box_is_no_pair():
    number, owner = crops_showing([np.arange(3), np.arange(3)], [2, 2], np.zeros((0, 4)))
    assert number.shape == owner.shape == (0,)


def test_slabs_are_the_grid_in_order():
    starts = [np.arange(300), np.arange(200), np.arange(10)]
    parts = slabs(starts)
    assert len(parts) > 1
    assert np.concatenate([part[0] for part in parts]).tolist() == list(range(300))
    assert all(len(part[0]) * 2000 <= 1 << 15 for part in parts)


@pytest.mark.parametrize("box", [[-0.5, -0.5, 1.5, 1.5], [7.5, 7.5, 9.5, 9.5]])
def test_a_box_that_only_touches_a_crop_is_not_shown(box):
    starts = [np.array([2]), np.array([2])]
    assert len(crops_showing(starts, [6, 6], np.array([box]))[0]) == 0

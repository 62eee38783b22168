"""Run lengths by hand and in a circle, without the whole image."""

import json

import numpy as np
import pytest

from voxelry.core.errors import DataError, SettingError
from voxelry.ops.rle import decode_rle, encode_rle

WINDOW = (slice(1, 3), slice(2, 4))
CROP = np.array([[True, True], [False, True]])


def test_runs_by_hand():
    """In a 3 x 5 image voxels 7, 8 and 13 of the rows; down the columns 7, 10 and 11, which is COCO's order."""
    assert encode_rle(CROP, WINDOW, (3, 5)) == {"size": [3, 5], "order": "C", "counts": [7, 2, 4, 1, 1]}
    assert encode_rle(CROP, WINDOW, (3, 5), order="F") == {"size": [3, 5], "order": "F", "counts": [7, 1, 2, 2, 3]}


def test_masks_at_the_ends_of_the_image():
    assert encode_rle(np.ones((2, 2), bool), (slice(0, 2),) * 2, (2, 2))["counts"] == [0, 4]
    assert encode_rle(np.zeros((2, 2), bool), (slice(0, 2),) * 2, (2, 2))["counts"] == [4]
    assert encode_rle(np.zeros((0, 0), bool), (slice(0, 0),) * 2, (2, 2))["counts"] == [4]


def test_coco_files_have_no_order():
    window, crop = decode_rle({"size": [3, 5], "counts": [7, 1, 2, 2, 3]})
    assert window == WINDOW
    np.testing.assert_array_equal(crop, CROP)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_there_and_back_through_json(rng, ndim, order):
    shape = (4, 7, 5)[:ndim]
    for _ in range(20):
        image = rng.random(shape) < rng.random()
        whole = tuple(slice(0, size) for size in shape)
        window, crop = decode_rle(json.loads(json.dumps(encode_rle(image, whole, shape, order=order))))
        back = np.zeros(shape, dtype=bool)
        back[window] = crop
        np.testing.assert_array_equal(back, image)


def test_a_volume_no_memory_would_hold():
    """A mask of eight voxels in a cube of 2¹⁸ a side, 18 petabytes."""
    size = 1 << 18
    window = (slice(size - 2, size),) * 3
    found, crop = decode_rle(encode_rle(np.ones((2, 2, 2), bool), window, (size,) * 3))
    assert found == window
    assert crop.all()


def test_an_empty_mask_has_an_empty_window():
    window, crop = decode_rle({"size": [3, 5], "order": "C", "counts": [15]})
    assert window == (slice(0, 0), slice(0, 0))
    assert crop.shape == (0, 0)


@pytest.mark.parametrize(
    ("window", "shape"),
    [((slice(0, 3), slice(0, 2)), (5, 5)), ((slice(4, 6), slice(0, 2)), (5, 5)), ((slice(-1, 1), slice(0, 2)), (5, 5))],
)
def test_a_window_that_does_not_fit_is_named(window, shape):
    with pytest.raises(SettingError, match="crop, window: expected"):
        encode_rle(CROP, window, shape)


@pytest.mark.parametrize(
    "broken",
    [
        {"counts": [4]},
        {"size": [2, 2]},
        {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": [[4]]},
        {"size": [2, 2], "counts": "52203"},
        {"size": [2, 2], "counts": "abc"},
        {"size": "ab", "counts": [4]},
        {"size": [2, 2], "counts": [4], "order": "A"},
    ],
)
def test_broken_runs_are_named(broken):
    with pytest.raises(DataError, match="run lengths: expected"):
        decode_rle(broken)

"""What is drawn over the image as it is shown, on the voxels of its file."""

import json
import re

import numpy as np
import pytest

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.io import read_image
from voxelry.ops.rle import encode_rle
from voxelry.serve.drawn import read_drawn, write_drawn
from voxelry.serve.volumes import thinned


def runs(mask):
    """A mask as the page sends it."""
    window = tuple(slice(0, size) for size in mask.shape)
    return json.loads(json.dumps(encode_rle(mask, window, mask.shape)))


@pytest.mark.parametrize("steps", [(1, 1, 1), (1, 2, 3)])
def test_each_voxel_is_as_the_nearest_shown_one_is(oblique, rng, tmp_path, steps):
    space = Space((5, 7, 11), oblique)
    grid = thinned(space, steps)
    assert grid.shape == tuple(-(-size // step) for size, step in zip(space.shape, steps, strict=True))
    mask = rng.random(grid.shape) < 0.2
    path = write_drawn(tmp_path / "mask.nii.gz", read_drawn(runs(mask), grid, space), space)
    found = read_image(path)
    assert found.space.is_close(space)
    places = np.moveaxis(np.indices(space.shape), 0, -1)
    nearest = np.minimum(np.floor(places / steps + 0.5), np.array(grid.shape) - 1).astype(int)
    np.testing.assert_array_equal(found.array[0], mask[tuple(np.moveaxis(nearest, -1, 0))])


def test_a_level_of_a_pyramid_covers_the_finest_one(tmp_path):
    space = Space.from_spacing((4, 6), 1.0)
    level = Space((2, 3), Space.from_spacing((2, 3), 2.0, origin=(0.5, 0.5, 0.0)).affine)  # centres between pixels
    mask = np.array([[False, True, False], [False, False, True]])
    window, crop = read_drawn(runs(mask), level, space)
    whole = np.zeros(space.shape, dtype=bool)
    whole[window] = crop
    np.testing.assert_array_equal(whole, np.kron(mask, np.ones((2, 2), dtype=bool)))


@pytest.mark.parametrize(
    ("drawn", "error", "message"),
    [
        (None, SettingError, "drawn: expected run lengths of size [2, 3], as the image is shown, got None"),
        ({"size": [3, 2], "counts": [0, 6]}, SettingError, "got [3, 2]"),
        ({"size": [2, 3], "counts": [6]}, SettingError, "drawn: expected a voxel at least"),
        ({"size": [2, 3], "counts": [1, 2]}, DataError, "run lengths: expected counts that sum to the 6 voxels"),
        ({"size": [2, 3], "counts": [7, -1]}, DataError, "run lengths: expected counts"),
        ({"size": [2, 3], "counts": "all"}, DataError, "run lengths: expected size and counts"),
        ({"size": [2, 3]}, DataError, "run lengths: expected size and counts"),
    ],
)
def test_what_was_not_drawn_over_the_image_is_refused(drawn, error, message):
    space = Space.from_spacing((2, 3))
    with pytest.raises(error, match=re.escape(message)):
        read_drawn(drawn, space, space)

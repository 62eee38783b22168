"""Windows of a file are what preprocessing makes of the whole image."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.file import PreparedFile
from voxelry.data.sample import Sample
from voxelry.io import open_image, read_image, write_image

MIRRORED = Space((7, 9, 12), [[0.1, -0.2, 2.0, 5.0], [0.0, 3.0, 0.2, -4.0], [-1.5, 0.0, 0.1, 60.0], [0, 0, 0, 1]])


@pytest.fixture
def file(tmp_path, rng):
    values = rng.normal(200, 50, (2, *MIRRORED.shape)).astype(np.float32)
    values[1] *= 3
    return open_image(write_image(tmp_path / "a.mha", values, MIRRORED))


@pytest.mark.parametrize(
    "settings",
    [
        {"normalise": "minmax"},
        {"normalise": "percentile"},
        {"normalise": "percentile", "per_channel": False},
        {"normalise": "zscore"},
        {"normalise": "zscore", "per_channel": False},
        {"normalise": "window", "window": (100, 300)},
        {"normalise": None},
        {"normalise": "minmax", "orientation": None},
        {"normalise": "minmax", "orientation": "RPI"},
    ],
)
def test_windows_are_cut_out_of_the_whole(file, settings):
    preprocess = Preprocess(**settings)
    image = read_image(file.path)
    whole = preprocess(Sample(torch.from_numpy(image.array), image.space, "a"))
    prepared = PreparedFile(open_image(file.path), preprocess)
    assert prepared.space.is_close(whole.space)
    windows = [(slice(1, 5), slice(0, 7), slice(2, 6)), tuple(slice(0, size) for size in whole.space.shape)]
    for window in windows:
        np.testing.assert_allclose(prepared(window), whole.image[(slice(None), *window)], atol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "zscore"])
@pytest.mark.parametrize("step", [0.0, 1e-3])
def test_a_channel_without_contrast_is_the_same_in_windows(tmp_path, method, step):
    """One voxel of 120 is off by two steps of float32: rounding to a z-score, a range to the others."""
    values = np.full((1, 4, 5, 6), 7000.0, dtype=np.float32)
    values[0, 0, 0, 0] += step
    path = write_image(tmp_path / "flat.npy", values, Space.from_spacing((4, 5, 6)))
    preprocess = Preprocess(normalise=method, percentiles=(0, 100))
    found = PreparedFile(open_image(path), preprocess)((slice(0, 4), slice(0, 5), slice(0, 6)))
    image = read_image(path)
    whole = preprocess(Sample(torch.from_numpy(image.array), image.space, "a")).image
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert found.any() == (step > 0 and method != "zscore")


@pytest.mark.parametrize(
    "settings",
    [{"image_size": 8}, {"spacing": 2.0}, {"align": "world"}, {"align": "auto"}, {"trim": True}, {"channels": 1}],
)
def test_a_change_of_grid_is_refused(file, settings):
    with pytest.raises(DataError, match="as the model resamples its images"):
        PreparedFile(file, Preprocess(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"outside": "keep"},
        {"normalise": "window", "window": (0, 1), "outside": "error"},
        {"intensity": "shared"},
        {"despeckle": True},
    ],
)
def test_values_that_windows_would_scale_otherwise_are_refused(file, settings):
    with pytest.raises(DataError, match="scales them in a way of its own"):
        PreparedFile(file, Preprocess(**settings))

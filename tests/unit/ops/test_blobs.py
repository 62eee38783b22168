"""The size of blobs follows from the image alone."""

import numpy as np
import pytest

from voxelry.ops.blobs import blob_size


def balls(shape, spacing, diameter, rng, noise=0.1):
    """Balls on a grid of places that don't touch, in noise."""
    grid = np.stack(
        np.meshgrid(*(np.arange(size) * step for size, step in zip(shape, spacing, strict=True)), indexing="ij")
    )
    image = rng.normal(0, noise, shape)
    step = 1.6 * diameter
    ends = [size * along for size, along in zip(shape, spacing, strict=True)]
    for centre in np.stack(np.meshgrid(*(np.arange(step / 2, end, step) for end in ends)), -1).reshape(-1, len(shape)):
        away = np.sqrt(((grid - centre[(..., *(None,) * len(shape))]) ** 2).sum(axis=0))
        image += away < diameter / 2
    return image


@pytest.mark.parametrize(
    ("shape", "spacing", "diameter"),
    [
        ((80, 96), (1, 1), 9),
        ((80, 96), (0.5, 1), 14),
        ((24, 60, 64), (0.004, 0.001, 0.001), 0.016),
        ((40,) * 3, (1,) * 3, 8),
    ],
)
def test_the_diameter_of_balls_is_found(rng, shape, spacing, diameter):
    image = balls(shape, spacing, diameter, rng)
    assert blob_size([image], spacing) == pytest.approx(diameter, rel=0.3)
    assert blob_size([1000 + 200 * image], spacing) == pytest.approx(blob_size([image], spacing)), "whatever the values"
    halves = np.array_split(image, 2, axis=-1)
    assert blob_size(halves, spacing) == pytest.approx(diameter, rel=0.3)


@pytest.mark.parametrize("image", [np.zeros((20, 20)), np.full((9, 9, 9), np.nan), np.ones((3, 50)), np.ones((0, 4))])
def test_where_there_is_nothing_no_size_is_told(image):
    assert blob_size([image], (1.0,) * image.ndim) is None
    assert blob_size([], (1.0, 1.0)) is None

"""Label maps on grids whose voxels lie each within an old one are copies; the others are in properties/test_labels."""

import numpy as np

from voxelry.ops.labels import resample_labels

LABELS = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)


def test_halves_of_voxels_along_other_axes_and_in_reverse_are_copies():
    order, steps = [2, 0, 1], [0.5, -0.5, 0.5]
    matrix, offset = np.zeros((3, 3)), np.zeros(3)
    for new, (old, step) in enumerate(zip(order, steps, strict=True)):
        matrix[old, new] = step
        offset[old] = -0.25 if step > 0 else LABELS.shape[old] - 0.75
    found = resample_labels(LABELS, matrix, offset, [2 * LABELS.shape[old] for old in order])
    expected = np.flip(LABELS.transpose(order), 1).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == LABELS.dtype


def test_a_wider_grid_of_the_same_voxels_is_background_around():
    found = resample_labels(LABELS, np.eye(3), np.array([-2.0, 0.0, 0.0]), (9, 6, 7))
    np.testing.assert_array_equal(found, np.pad(LABELS, ((2, 2), (0, 0), (0, 0))))


def test_thirds_of_pixels_are_copies():
    found = resample_labels(LABELS[0], np.eye(2) / 3, np.full(2, -1 / 3), (18, 21))
    np.testing.assert_array_equal(found, LABELS[0].repeat(3, 0).repeat(3, 1))

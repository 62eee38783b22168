"""Organ phantoms: one connected organ in a close crop, its size in mm whatever the grid."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from voxelry.core.errors import SettingError
from voxelry.io import read_image
from voxelry.phantoms import write_phantoms
from voxelry.phantoms.organ import ORGAN_LABELS, make_organ


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_seed_gives_the_same_arrays_and_another_one_others(ndim):
    one, again, other = (make_organ(seed, ndim=ndim, oblique=True) for seed in (4, 4, 5))
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.labels, again.labels)
    np.testing.assert_array_equal(one.space.affine, again.space.affine)
    assert one.image.shape != other.image.shape or not torch.equal(one.image, other.image)
    assert one.image.shape == (1, *one.space.shape) == (1, *one.labels.shape)
    assert 0 <= one.image.min() <= one.image.max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_the_organ_is_one_piece_with_a_margin_on_every_side(seed):
    labels = make_organ(seed).labels.numpy()
    assert sorted(np.unique(labels)) == list(range(len(ORGAN_LABELS)))
    assert ndimage.label(labels > 0)[1] == 1
    found = np.argwhere(labels > 0)
    margins = np.concatenate([found.min(axis=0), np.array(labels.shape) - 1 - found.max(axis=0)])
    assert (margins >= 1).all()
    assert (margins <= 10).all()


def test_sizes_are_physical_on_an_oblique_mirrored_grid():
    def extent(spacing):
        sample = make_organ(2, shape=(64, 80, 64), spacing=spacing, oblique=True)
        world = sample.space.to_world(np.argwhere(sample.labels.numpy() > 0).astype(float))
        return np.sort(np.linalg.eigvalsh(np.cov(world.T))) ** 0.5

    even, thick = extent((1.0, 1.0, 1.0)), extent((2.0, 1.0, 1.0))
    np.testing.assert_allclose(thick, even, rtol=0.3)
    assert even[2] > 2.5 * even[1]  # it is long


def test_the_organ_stands_out_from_what_is_around_it():
    for seed in range(4):
        sample = make_organ(seed, noise=0.0)
        organ = sample.labels.numpy() > 0
        image = sample.image[0].numpy()
        inside = image[ndimage.binary_erosion(organ, iterations=2)]
        around = image[ndimage.binary_dilation(organ, iterations=3) & ~ndimage.binary_dilation(organ)]
        assert abs(np.median(inside) - np.median(around)) > 0.04
        assert inside.std() < around.std()


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"shape": (16, 64, 64)}, "shape"), ({"shape": (64, 64)}, "shape"), ({"spacing": 0.0}, "spacing")],
)
def test_settings_that_can_t_be_are_refused(settings, fault):
    with pytest.raises(SettingError, match=fault):
        make_organ(0, **settings)


def test_files_hold_what_was_made(tmp_path):
    folder = write_phantoms(tmp_path / "o", 2, seed=8, kind="organ", format=".nii.gz")
    assert {entry.name for entry in folder.iterdir()} == {"volumes", "labels"}
    sample = make_organ(9, oblique=True)
    labels = read_image(folder / "labels" / "case_001.nii.gz")
    np.testing.assert_array_equal(labels.array[0], sample.labels)
    np.testing.assert_allclose(labels.space.affine, sample.space.affine, atol=1e-4)

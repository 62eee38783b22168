"""Nuclei phantoms: exact instances, the same for the same seed, in every rank and spacing."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from voxelry.core.errors import SettingError
from voxelry.io import read_image
from voxelry.ops.masks import mask_boxes
from voxelry.phantoms import write_phantoms
from voxelry.phantoms.nuclei import make_nuclei


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_seed_gives_the_same_arrays_and_another_one_others(ndim):
    one, again, other = (make_nuclei(seed, ndim=ndim) for seed in (4, 4, 5))
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.masks, again.masks)
    assert not torch.equal(one.masks, other.masks)
    assert one.image.shape == (1, *one.space.shape)
    assert 0 <= one.image.min() <= one.image.max() <= 1


def test_every_id_has_voxels_and_the_box_around_them():
    sample = make_nuclei(1, shape=(24, 48, 48))
    count = len(sample.boxes)
    assert sorted(np.unique(sample.masks)) == list(range(count + 1))
    torch.testing.assert_close(sample.boxes, mask_boxes(sample.masks, count))


def test_sizes_are_physical():
    def lengths(spacing):
        sample = make_nuclei(2, shape=(60, 60, 60), spacing=spacing, diameter=12.0, density=0.15)
        boxes = sample.boxes.numpy()
        whole = (boxes[:, :3] > 0).all(axis=1) & (boxes[:, 3:] < 59).all(axis=1)
        return np.median((boxes[:, 3:] - boxes[:, :3])[whole] * spacing, axis=0)

    cubes, thick = lengths((1.0, 1.0, 1.0)), lengths((2.0, 1.0, 1.0))
    np.testing.assert_allclose(cubes[1:], 12, rtol=0.35)
    np.testing.assert_allclose(thick[1:], 12, rtol=0.35)
    assert 12 * 0.65 < thick[0] < 12 * 2


def test_nuclei_are_bright_and_some_touch():
    sample = make_nuclei(3, shape=(32, 64, 64), density=0.4, noise=0.01)
    image, ids = sample.image[0].numpy(), sample.masks.numpy()
    assert image[ids > 0].mean() > 1.5 * image[ids == 0].mean()
    parts, count = ndimage.label(ids > 0)
    assert count < len(sample.boxes)
    assert parts.max() == count


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"shape": (4, 32, 32)}, "shape"),
        ({"shape": (32, 32)}, "shape"),
        ({"spacing": -1.0}, "spacing"),
        ({"density": 0.9}, "density"),
        ({"diameter": 0.0}, "diameter"),
        ({"ndim": 4}, "ndim"),
    ],
)
def test_settings_that_can_t_be_are_refused(settings, fault):
    with pytest.raises(SettingError, match=fault):
        make_nuclei(0, **settings)


def test_files_hold_what_was_made(tmp_path):
    folder = write_phantoms(tmp_path / "n", 2, seed=8, shape=(16, 40, 40), kind="nuclei", format=".ome.tif")
    assert {entry.name for entry in folder.iterdir()} == {"volumes", "instances"}
    sample = make_nuclei(9, shape=(16, 40, 40))
    ids = read_image(folder / "instances" / "case_001.ome.tif")
    np.testing.assert_array_equal(ids.array[0], sample.masks)
    np.testing.assert_allclose(ids.space.spacing, sample.space.spacing, rtol=1e-4)


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(SettingError, match="kind: expected one of torso, nuclei"):
        write_phantoms(tmp_path, 1, kind="cells")

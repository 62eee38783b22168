from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.augment import SpatialAugment
from voxelry.data.context import border_distances, context, positions, swapped_borders, whole_view
from voxelry.data.patches import Patches, crop
from voxelry.data.sample import Sample


def test_positions_are_centres_between_the_outer_edges():
    assert_close(positions((4, 1), (0, 0), (4, 1))[0, :, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert_close(positions((4, 1), (0, 0), (4, 1))[1], torch.zeros(4, 1))
    assert_close(positions((4, 2), (-1, 1), (2, 2))[0, :, 0], torch.tensor([-1.25, -0.75]))


@pytest.mark.parametrize("shape", [(9, 12), (6, 10, 7)])
def test_the_positions_of_a_window_are_a_window_of_the_positions(shape):
    start, size = [1] * len(shape), [3] * len(shape)
    whole = positions(shape, [0] * len(shape), shape)
    assert_close(positions(shape, start, size), whole[(slice(None), *[slice(1, 4)] * len(shape))])


def test_the_view_keeps_the_mean(rng):
    image = torch.from_numpy(rng.random((2, 12, 8, 20))).float()
    view = whole_view(image, (4, 4, 5))
    assert view.shape == (2, 4, 4, 5)
    assert_close(view.mean(dim=(1, 2, 3)), image.mean(dim=(1, 2, 3)))
    assert_close(view[0, 1, 0, 2], image[0, 3:6, 0:2, 8:12].mean())


def test_a_small_image_is_repeated():
    assert_close(whole_view(torch.tensor([[[1.0, 3.0]]]), (2, 4)), torch.tensor([[[1.0, 1, 3, 3], [1, 1, 3, 3]]]))


def test_patches_carry_their_context(oblique, rng):
    image = torch.from_numpy(rng.random((2, *oblique.shape))).float()
    patches = Patches((8, 12, 40), context=True)  # wider than the image
    sample = patches(Sample(image, oblique, "a"), np.random.default_rng(4))
    start = np.round(oblique.to_index(sample.space.origin)).astype(int).tolist()
    assert start[2] < 0
    assert sample.context.shape == (5, 8, 12, 40)
    assert_close(sample.context, context(image, start, (8, 12, 40)))
    assert Patches(**patches.settings()).context
    assert torch.equal(patches.trim(sample).context, sample.context)


def test_windows_with_context_have_no_margin():
    with pytest.raises(SettingError, match="margin: expected 0 with context"):
        Patches(8, margin=2, context=True)


def test_without_context_there_is_none():
    sample = Sample(torch.rand(1, 8, 8), Space.from_spacing((8, 8)), "a")
    assert Patches(4)(sample, np.random.default_rng(0)).context is None


def tilted(shape):
    """Anisotropic, mirrored, turned by 20 degrees."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([3.0, -1.2, 0.8])
    affine[:3, 3] = (4, -7, 30)
    return Space(shape, affine)


def test_borders_are_outer_edges_in_mm():
    borders = border_distances(tilted((4, 5, 6)))
    assert borders.shape == (6, 4, 5, 6)
    assert_close(borders[0, :, 0, 0], torch.tensor([1.5, 4.5, 7.5, 10.5]))
    assert_close(borders[1, :, 0, 0], torch.tensor([10.5, 7.5, 4.5, 1.5]))
    assert_close(borders[2] + borders[3], torch.full((4, 5, 6), 6.0))
    assert_close(borders[4, 2, 3], 0.8 * (torch.arange(6) + 0.5))


def test_a_flip_of_the_image_swaps_its_borders():
    borders = border_distances(tilted((4, 5, 6)))
    assert_close(borders.flip(2)[swapped_borders(3, [1])], borders)
    with pytest.raises(AssertionError):
        assert_close(borders.flip(2), borders)


@pytest.mark.parametrize("seed", range(6))
def test_borders_move_with_the_image(seed):
    """After a turn, a change of scale and flips they are the distances to the planes where the borders then lie."""
    space = tilted((18, 30, 40))
    augment = SpatialAugment(
        movement_probability=1.0, rotation=15.0, scale=0.2, shift=2.0, shift_fraction=0.0, flip=0.5, mirror=0.5,
        elastic=0.0, fill="edge",
    )  # fmt: skip
    movement = augment.draw(space, np.random.default_rng(seed))
    sample = Sample(torch.zeros(1, *space.shape), space, "case", borders=border_distances(space))
    moved = augment.apply(sample, movement).borders
    index = np.stack(np.meshgrid(*(np.arange(count) for count in space.shape), indexing="ij"), axis=-1)
    came_from = index @ movement.matrix.T + movement.offset
    inside = (came_from >= 0).all(axis=-1) & (came_from <= np.array(space.shape) - 1).all(axis=-1)
    assert inside.mean() > 0.5
    for axis, (count, step) in enumerate(zip(space.shape, space.spacing, strict=True)):
        gradient = movement.matrix[axis] / np.asarray(space.spacing)  # of the old index, per mm
        for side, old in enumerate((came_from[..., axis] + 0.5, count - 0.5 - came_from[..., axis])):
            channel = 2 * axis + (1 - side if movement.flips[axis] else side)
            expected = old / np.linalg.norm(gradient)
            np.testing.assert_allclose(moved[channel].numpy()[inside], expected[inside], atol=0.02 * step)


def test_windows_carry_the_borders_of_the_whole():
    space = tilted((18, 30, 40))
    whole = border_distances(space)
    sample = Sample(torch.zeros(1, *space.shape), space, "case", borders=whole)
    window = crop(sample, (4, -2, 10), (5, 8, 6), fill="edge")
    assert_close(window.borders[:, :, 2:], whole[:, 4:9, :6, 10:16])
    assert_close(window.borders[:, :, :2], whole[:, 4:9, :1, 10:16].expand(-1, -1, 2, -1))

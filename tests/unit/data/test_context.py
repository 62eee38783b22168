from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.context import context, positions, whole_view
from voxelry.data.patches import Patches
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

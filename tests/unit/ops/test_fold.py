"""Folding loses nothing, however the voxels are copied."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from voxelry.ops import fold as folding
from voxelry.ops.fold import fold_voxels, unfold_voxels


@pytest.mark.parametrize(("shape", "fold"), [((6, 8), (2, 4)), ((4, 6, 9), (2, 1, 3)), ((4, 4, 4), (1, 1, 1))])
def test_unfolding_is_the_inverse(shape, fold):
    x = torch.randn(2, 3, *shape)
    folded = fold_voxels(x, fold)
    assert folded.shape[2:] == tuple(size // step for size, step in zip(shape, fold, strict=True))
    assert_close(unfold_voxels(folded, fold), x)


def test_a_block_becomes_the_channels_of_one_voxel():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert fold_voxels(x, (2, 2))[0, :, 1, 0].tolist() == [8.0, 9.0, 12.0, 13.0]


def test_in_two_dimensions_it_is_torchs_pixel_unshuffle():
    x = torch.randn(2, 3, 6, 8)
    assert_close(fold_voxels(x, (2, 2)), torch.nn.functional.pixel_unshuffle(x, 2))
    y = torch.randn(2, 12, 3, 4)
    assert_close(unfold_voxels(y, (2, 2)), torch.nn.functional.pixel_shuffle(y, 2))


@pytest.mark.parametrize("channels", [1, 3, 9])
@pytest.mark.parametrize(("shape", "fold"), [((128, 92), (2, 2)), ((30, 26, 50), (2, 2, 2)), ((31, 26, 49), (1, 2, 2))])
def test_large_maps_and_their_gradients_are_copied_by_place(shape, fold, channels, monkeypatch):
    def results(layout):
        torch.manual_seed(0)
        x = torch.randn(2, channels, *shape).to(memory_format=layout).requires_grad_()
        folded = fold_voxels(x, fold)
        back = unfold_voxels(folded.square(), fold)
        (back * torch.randn(back.shape)).sum().backward()
        return folded, back, x.grad

    layout = torch.channels_last if len(shape) == 2 else torch.channels_last_3d
    found = [results(torch.contiguous_format), results(layout)]
    monkeypatch.setattr(folding, "_pays", lambda *_: False)
    expected = results(torch.contiguous_format)
    for one in found:
        assert all(torch.equal(*pair) for pair in zip(one, expected, strict=True))
    assert found[0][0].is_contiguous(memory_format=layout)

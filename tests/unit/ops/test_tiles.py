"""Tiles: they cover, they blend, and they agree with the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.nn import nd
from voxelry.ops.tiles import BLENDS, blend_profile, predict_tiles, tile_starts, tiles

SHAPES = {2: (23, 37), 3: (23, 37, 18)}


def test_starts_are_even_and_end_with_the_axis():
    assert tile_starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert tile_starts(101, 40, 0.5)[-1] == 61
    assert tile_starts(30, 40, 0.5) == [0]
    assert tile_starts(40, 40, 0.5) == [0]


def test_aligned_starts_are_multiples_except_the_last():
    starts = tile_starts(103, 32, 0.5, align=8)
    assert all(start % 8 == 0 for start in starts[:-1])
    assert starts[-1] == 103 - 32
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0, "overlap": 0.5}, "tile_size"),
        ({"tile": 16, "overlap": 1.0}, "tile_overlap"),
        ({"tile": 8, "overlap": 0.9, "align": 4}, "multiple of 4"),
    ],
)
def test_impossible_tilings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        tile_starts(64, **settings)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_every_voxel_is_covered(overlap):
    count = torch.zeros(23, 37, 18)
    for window in tiles((23, 37, 18), (8, 16, 40), overlap):
        assert [part.stop - part.start for part in window] == [8, 16, 18]
        count[window] += 1
    assert count.min() >= 1


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pointwise_network_sees_no_tiles(ndim, blend, batch_size):
    image = torch.randn(2, 1, *SHAPES[ndim])
    network = nd.conv(ndim)(1, 3, 1)
    tiled = predict_tiles(image, network, tile_size=10, overlap=0.4, blend=blend, batch_size=batch_size)
    assert_close(tiled, network(image))


@pytest.mark.parametrize("ndim", [2, 3])
def test_cropped_tiles_equal_the_whole_within_the_receptive_field(ndim):
    image = torch.randn(1, 1, *SHAPES[ndim])
    network = torch.nn.Sequential(nd.conv(ndim)(1, 4, 3, padding=1), nd.conv(ndim)(4, 2, 3, padding=1))
    whole = network(image)
    # two convolutions of width 3 reach 2 voxels; half of the overlap of 12 * 0.5 is 3
    assert_close(predict_tiles(image, network, tile_size=12, overlap=0.5, blend="crop"), whole)
    blended = predict_tiles(image, network, tile_size=12, overlap=0.5, blend="linear")
    assert (blended - whole).abs().max() > 1e-3


@pytest.mark.parametrize("blend", BLENDS)
def test_weights_are_positive_where_they_are_needed(blend):
    inner = blend_profile(12, 6, blend=blend)
    assert_close(inner, inner.flip(0))
    assert inner.argmax() in (3, 4, 5, 6)
    assert (blend_profile(12, 6, blend=blend, at_start=True, at_end=True) > 0).all()


def test_an_unknown_blend_and_a_network_that_shrinks_are_refused():
    image = torch.zeros(1, 1, 20, 20)
    with pytest.raises(SettingError, match="blend"):
        predict_tiles(image, lambda x: x, tile_size=8, blend="cubic")
    with pytest.raises(SettingError, match="same shape"):
        predict_tiles(image, lambda x: x[..., ::2], tile_size=8)

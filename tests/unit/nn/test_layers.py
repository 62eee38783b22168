"""Resampling, weight standardisation, time embedding and attention against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from voxelry.core.errors import SettingError
from voxelry.models.footprint import peak_of
from voxelry.nn import nd
from voxelry.nn.attention import FullAttention, WindowAttention
from voxelry.nn.conv import (
    AverageDown,
    NearestConvUp,
    NearestUp,
    SeparableConv,
    SpaceToDepthDown,
    StridedDown,
    WeightStandardisedConv,
)
from voxelry.nn.time import TimeEmbedding, sinusoids

SIZES = {2: (6, 4), 3: (4, 6, 8)}


@pytest.mark.parametrize(("ndim", "stride"), [(2, (2, 2)), (2, (1, 3)), (3, (2, 2, 2)), (3, (1, 2, 3))])
def test_up_is_nearest_then_convolution(ndim, stride):
    layer = NearestConvUp(3, 5, ndim=ndim, stride=stride)
    x = torch.randn(2, 3, *SIZES[ndim])
    nearest = NearestUp(3, 3, ndim=ndim, stride=stride)(x)
    torch.testing.assert_close(layer(x), layer.conv(nearest), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_space_to_depth_weighs_the_values_of_each_block(ndim):
    layer = SpaceToDepthDown(1, 1, ndim=ndim, stride=(2,) * ndim)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    x = torch.randn(1, 1, *SIZES[ndim])
    mean = AverageDown(1, 1, ndim=ndim, stride=(2,) * ndim)(x)
    torch.testing.assert_close(layer(x), mean * 2**ndim, rtol=1e-5, atol=1e-5)


def test_strided_down_sees_the_far_side():
    layer = StridedDown(1, 1, ndim=2, stride=(1, 2))
    torch.nn.init.zeros_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    layer.conv.weight.data[0, 0, 1, 2] = 1.0
    x = torch.arange(1.0, 13.0).reshape(1, 1, 2, 6)
    assert layer(x)[0, 0].tolist() == [[3.0, 5.0, 0.0], [9.0, 11.0, 0.0]]


@pytest.mark.parametrize("layer", [AverageDown, NearestUp])
def test_layers_without_weights_refuse_to_change_channels(layer):
    with pytest.raises(SettingError, match="keeps the channels"):
        layer(3, 4, ndim=2, stride=(2, 2))


@pytest.mark.parametrize("ndim", [2, 3])
def test_standardised_weights_ignore_scale_and_offset(ndim):
    layer = WeightStandardisedConv(3, 4, ndim=ndim)
    x = torch.randn(1, 3, *SIZES[ndim])
    before = layer(x)
    assert before.shape == (1, 4, *SIZES[ndim])
    layer.weight.data = 7 * layer.weight.data + 2
    torch.testing.assert_close(layer(x), before, rtol=1e-2, atol=1e-2)


def test_sinusoids_of_known_times():
    wave = sinusoids(torch.tensor([0, 2]), 5)
    assert wave[0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    expected = [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4), 0.0]
    assert wave[1].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("channels", "activation", "message"), [(1, "gelu", "at least 2"), (8, "relu", "one of gelu, silu")]
)
def test_time_embedding_says_what_it_wants(channels, activation, message):
    with pytest.raises(SettingError, match=message):
        TimeEmbedding(channels, 16, activation=activation)


@pytest.mark.parametrize("ndim", [2, 3])
def test_full_attention_is_a_softmax_over_all_voxels(ndim):
    layer = FullAttention(6, ndim=ndim, heads=2, head_dim=None, bias=True, groups=3)
    x = torch.randn(2, 6, *SIZES[ndim])
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).unflatten(1, (3, 2, 3)).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(3**0.5).softmax(dim=-1)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).flatten(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), x + layer.out(mixed), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x, recompute=True), layer(x))


def test_heads_must_share_the_channels():
    with pytest.raises(SettingError, match="4 heads can't share 6 channels"):
        FullAttention(6, ndim=2, heads=4, head_dim=None)


@pytest.mark.parametrize("ndim", [2, 3])
def test_functional_convolutions_have_the_rank_of_the_weight(ndim):
    layer = nd.conv(ndim)(2, 3, 3, padding=1)
    x = torch.randn(1, 2, *SIZES[ndim])
    torch.testing.assert_close(nd.convolve(x, layer.weight, layer.bias, padding=(1,) * ndim), layer(x))
    mode = nd.interpolation_mode(ndim)
    assert F.interpolate(x, scale_factor=2.0, mode=mode).shape[2:] == tuple(2 * side for side in SIZES[ndim])


def test_other_ranks_are_refused():
    with pytest.raises(SettingError, match="ndim: expected 2 or 3"):
        nd.conv(1)


@pytest.mark.parametrize("size", [(4, 3), (3, 4, 2)])
def test_a_window_that_holds_the_map_is_full_attention(size):
    window = WindowAttention(8, ndim=len(size), heads=2, head_dim=4, window=4)
    full = FullAttention(8, ndim=len(size), heads=2, head_dim=4)
    full.load_state_dict(window.state_dict())
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(window(x), full(x))


@pytest.mark.parametrize("size", [(7, 4), (5, 4, 9)])
def test_windows_do_not_see_each_other_and_filled_up_voxels_do_not_count(size):
    layer = WindowAttention(8, ndim=len(size), heads=2, head_dim=4, window=4).double()
    x = torch.randn(2, 8, *size, dtype=torch.double)
    layer.norm = torch.nn.Identity()  # its statistics are of the whole map
    whole = layer(x)
    middle = -(-size[0] // 2)  # two windows along the first axis of 7 or 5
    for part in (slice(middle), slice(middle, None)):
        torch.testing.assert_close(layer(x[:, :, part]), whole[:, :, part])


@pytest.mark.parametrize("ndim", [2, 3])
def test_separable_convolution_is_one_of_separable_kernels(ndim):
    layer = SeparableConv(3, 5, ndim=ndim).double()
    x = torch.randn(2, 3, *SIZES[ndim], dtype=torch.double)
    kernel = torch.ones((3, *[1] * ndim), dtype=torch.double)
    for along in layer.along:
        kernel = kernel * along.weight[:, 0]
    weight = layer.mix.weight * kernel[None]
    torch.testing.assert_close(layer(x), nd.convolve(x, weight, layer.mix.bias, padding=[1] * ndim))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{}, {"window": 64}])
def test_attention_keeps_no_number_for_every_pair_of_voxels(layout, settings):
    layer = (WindowAttention if settings else FullAttention)(8, ndim=2, heads=2, head_dim=8, **settings)
    x = torch.randn(1, 8, 64, 64).contiguous(memory_format=layout)
    one_for_every_pair = 4 * layer.heads * 64**4  # bytes
    assert peak_of(layer, lambda: layer(x).square().mean()) < one_for_every_pair / 2

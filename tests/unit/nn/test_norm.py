"""Normalisations by name."""

import pytest
import torch
from torch import nn

from voxelry.core.errors import SettingError
from voxelry.nn.norm import NORMS, ChannelNorm, FrozenBatchNorm, GroupNorm, make_norm

SIZES = {2: (4, 5), 3: (3, 4, 5)}


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_of_each_voxel_are_normalised(ndim):
    norm = ChannelNorm(6, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, *SIZES[ndim])
    voxel = (1, slice(None), *[2] * ndim)
    values = x[voxel]
    centred = values - values.mean()
    expected = norm.weight * centred / (centred.square().mean() + 1e-3).sqrt() + norm.bias
    torch.testing.assert_close(norm(x)[voxel], expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_frozen_batch_norm_is_batch_norm_in_evaluation(ndim):
    norm = make_norm("batch", 4, ndim=ndim, eps=1e-2)
    for _ in range(3):
        norm(3 + 2 * torch.randn(8, 4, *SIZES[ndim]))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    frozen = FrozenBatchNorm(4, eps=1e-2).train()
    frozen.load_state_dict({key: value for key, value in norm.state_dict().items() if "num_batches" not in key})
    x = torch.randn(2, 4, *SIZES[ndim])
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert list(frozen.parameters()) == []


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_name_makes_a_layer_for_one_voxel(kind, ndim):
    layer = make_norm(kind, 32, ndim=ndim).eval()
    assert layer(torch.randn(1, 32, *[1] * ndim)).shape == (1, 32, *[1] * ndim)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (32, 16), (24, 4), (1, 1)])
def test_groups_of_two_channels_or_more(channels, groups):
    assert make_norm("group", channels, ndim=2).num_groups == groups


def test_unknown_name():
    with pytest.raises(SettingError, match="norm: expected one of batch, frozen_batch, group, layer, got 'sync'"):
        make_norm("sync", 4, ndim=2)


@pytest.mark.parametrize("layer", [GroupNorm(2, 6), ChannelNorm(6)], ids=["group", "channel"])
def test_norms_keep_the_type_that_autocast_would_widen(layer, monkeypatch):
    seen = []
    for name in ("group_norm", "layer_norm"):
        real = getattr(torch.nn.functional, name)

        def watched(*args, real=real):
            seen.append((torch.is_autocast_enabled("cpu"), {x.dtype for x in args if isinstance(x, torch.Tensor)}))
            return real(*args)

        monkeypatch.setattr(torch.nn.functional, name, watched)
    x = torch.randn(2, 6, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert seen == [(False, {torch.bfloat16})]
    torch.testing.assert_close(half.float(), layer(x), rtol=0.03, atol=0.03)

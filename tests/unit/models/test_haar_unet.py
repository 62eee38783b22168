"""The network on wavelet bands is a U-Net to everyone outside."""

import json

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.models.networks import NETWORKS, build_network, input_channels
from voxelry.models.unet.haar import HaarUNet

SMALL = {"width": 8, "multipliers": (1, 2), "groups": 4, "heads": 2, "head_dim": 4}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("axes", [None, [1]])
@pytest.mark.parametrize("levels", [1, 2])
def test_any_size_and_a_time_and_a_condition(ndim, axes, levels):
    network = HaarUNet(ndim=ndim, axes=axes, levels=levels, in_channels=2, out_channels=3, self_condition=True, **SMALL)
    x = torch.randn(2, 2, *(7, 10, 9)[:ndim])
    y = network(x, torch.tensor([3, 7]), torch.randn(2, 3, *x.shape[2:]))
    assert y.shape == (2, 3, *x.shape[2:])
    y.sum().backward()
    assert network.fold == tuple(2**levels if axes is None or axis in axes else 1 for axis in range(ndim))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_ends_lose_nothing(ndim, levels):
    network = HaarUNet(ndim=ndim, axes=[0, ndim - 1], levels=levels, **SMALL)
    x = torch.rand(2, 3, *(5, 11, 13)[:ndim]) * 2 - 1
    assert (network.fold_out(network.fold_in(x), x.shape[2:]) - x).abs().max() <= 1e-6


def test_settings_build_it_again():
    network = HaarUNet(ndim=3, axes=(1, 2), levels=2, out_channels=4, **SMALL).eval()
    settings = json.loads(json.dumps(network.settings()))
    assert "fold" not in settings
    again = build_network(NETWORKS.name_of(type(network)), settings).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 5, 8, 6)
    assert_close(again(x), network(x))
    assert input_channels(network) == 1


def test_a_head_of_zeros_answers_zero_and_learns():
    network = HaarUNet(ndim=2, zero_head=True, **SMALL)
    x = torch.randn(1, 1, 8, 8)
    answer = network(x, torch.tensor([3]))
    assert answer.abs().max() == 0
    (answer - x).square().sum().backward()
    assert network.head.weight.grad.abs().max() > 0


def test_what_cannot_be_is_refused():
    with pytest.raises(SettingError, match="levels: expected at least 1, got 0"):
        HaarUNet(ndim=2, levels=0, **SMALL)
    with pytest.raises(SettingError, match="axes: expected different numbers from 0 to 1"):
        HaarUNet(ndim=2, axes=[2], **SMALL)

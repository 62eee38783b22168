"""The folded network is a U-Net to everyone outside."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.models.unet.folded import FoldedUNet

SMALL = {"width": 8, "multipliers": (1, 2), "groups": 4, "heads": 2, "head_dim": 4}


@pytest.mark.parametrize("ndim", [2, 3])
def test_any_size_and_a_time_and_a_condition(ndim):
    network = FoldedUNet(ndim=ndim, fold=2, in_channels=1, out_channels=3, self_condition=True, **SMALL)
    x = torch.randn(2, 1, *(7, 10, 9)[:ndim])
    y = network(x, torch.tensor([3, 7]), torch.randn(2, 3, *x.shape[2:]))
    assert y.shape == (2, 3, *x.shape[2:])
    y.sum().backward()


def test_settings_build_it_again():
    network = FoldedUNet(ndim=3, fold=(1, 2, 2), out_channels=4, **SMALL).eval()
    again = FoldedUNet(**json.loads(json.dumps(network.settings()))).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 5, 8, 6)
    assert_close(again(x), network(x))


def test_a_fold_of_nothing_is_refused():
    with pytest.raises(SettingError, match="fold"):
        FoldedUNet(ndim=2, fold=0, **SMALL)
    with pytest.raises(SettingError, match="fold"):
        FoldedUNet(ndim=2, fold=(2, 2, 2), **SMALL)

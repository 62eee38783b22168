"""ResNet: sizes, stages and normalisations that are asked for."""

import pytest
import torch

from voxelry.backbones import ResNet
from voxelry.core.errors import SettingError

TINY = {"width": 4, "layers": (1, 1, 1, 1)}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_known_networks_have_the_published_number_of_parameters():
    # of torchvision's models, less the 1000-class classifier
    assert parameters(ResNet(ndim=2, in_channels=3)) == 11_689_512 - 513_000
    resnext = ResNet(ndim=2, in_channels=3, block="bottleneck", layers=(3, 4, 6, 3), groups=32, group_width=4)
    assert parameters(resnext) == 25_028_904 - 2_049_000


@pytest.mark.parametrize("ndim", [2, 3])
def test_stages_behind_the_last_level_are_not_made(ndim):
    network = ResNet(ndim=ndim, levels=["p3"], **TINY)
    assert len(network.stages) == 2
    assert network.out_channels == {"p3": 8}
    assert network.strides == {"p3": (8,) * ndim}


def test_strides_of_thick_slices():
    network = ResNet(ndim=3, stem_stride=(1, 2, 2), pool_stride=(1, 2, 2), stage_strides=(1, (1, 2, 2), 2, 2), **TINY)
    assert network.strides == {"p2": (1, 4, 4), "p3": (1, 8, 8), "p4": (2, 16, 16), "p5": (4, 32, 32)}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@torch.no_grad()
def test_dilation_keeps_the_resolution_and_the_weights(block):
    settings = {**TINY, "block": block, "layers": (1, 1, 1, 2)}
    plain = ResNet(ndim=2, **settings).eval()
    dilated = ResNet(ndim=2, dilated=(False, False, False, True), **settings).eval()
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 64, 64)
    coarse, fine = plain(x)["p5"], dilated(x)["p5"]
    assert fine.shape[2:] == (4, 4)
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse)  # the same products at every second voxel


def test_without_pooling():
    assert ResNet(ndim=2, pool_stride=None, **TINY).strides["p2"] == (2, 2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_frozen_statistics_stay_in_training(ndim):
    network = ResNet(ndim=ndim, norm="frozen_batch", levels=["p2"], **TINY).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(torch.randn(2, 1, *[16] * ndim))["p2"].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any("norm" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "dense"}, "block: expected basic or bottleneck"),
        ({"norm": "instance"}, "norm: expected one of batch"),
        ({"levels": ["p1"]}, "levels: expected some of p2"),
        ({"levels": []}, "levels: expected some of p2"),
        ({"levels": {"p2": "a", "p3": "a"}}, "levels: expected a name of its own"),
        ({"layers": (1, 1)}, "layers: level p5 needs 4 values, got 2"),
        ({"layers": (1, 0, 1, 1)}, "layers: expected at least 1 block"),
        ({"stage_strides": (1, (1, 2), 2, 2)}, "stage_strides: expected 1 or 3 values"),
        ({"stem_kernel": 4}, "stem_kernel, pool_kernel: expected odd widths"),
        ({"groups": 2}, "groups, group_width: a basic block has 1 and 64"),
        ({"ndim": 4}, "ndim: expected 2 or 3"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(SettingError, match=message):
        ResNet(**{"ndim": 3, **TINY, **settings})

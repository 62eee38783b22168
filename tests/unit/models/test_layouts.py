"""Channels-last from a network's first layer to its last: nothing is turned round in memory on the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from voxelry.backbones.build import build_backbone
from voxelry.models.backbone_heatmaps import BackboneHeatmaps
from voxelry.models.unet import UNet
from voxelry.models.unet.folded import FoldedUNet
from voxelry.models.unet.haar import HaarUNet
from voxelry.nn import nd

SMALL = {"width": 8, "multipliers": (1, 2), "heads": 2, "head_dim": 3, "groups": 4}
LIKE_DDPM = {**SMALL, "block": "pre_norm", "wiring": "dense", "down": "strided", "up": "nearest", "attention": "full"}
UNETS = {
    "original": SMALL,
    "original, norms again": {**SMALL, "checkpointing": "norms"},
    "original, blocks again": {**SMALL, "checkpointing": "blocks"},
    "ddpm": LIKE_DDPM,
    "ddpm, linear": {**LIKE_DDPM, "down": "average", "up": "linear"},
    "separable": {**SMALL, "block": "separable", "attention": "none", "up": "linear_conv"},
    "separable, norms again": {**SMALL, "block": "separable", "attention": "none", "checkpointing": "norms"},
}
RESNET = {"name": "resnet", "width": 8, "layers": [1, 1], "levels": ["p2", "p3"], "norm": "group"}
BACKBONES = {
    "resnet": RESNET,
    "bottlenecks": {**RESNET, "block": "bottleneck", "norm": "batch"},
    "fpn": {"name": "fpn", "backbone": RESNET, "out_channels": 8},
}


def order(x):
    """Axes from the farthest apart in memory to the nearest, without those of one entry."""
    return sorted((axis for axis in range(x.ndim) if x.shape[axis] > 1), key=lambda axis: -x.stride(axis))


class Turned(TorchDispatchMode):
    """Notes copies of feature maps to another layout, and those in another one that a convolution or norm is given."""

    def __init__(self, shape):
        super().__init__()
        self.rank, self.batch = len(shape), shape[0]
        self.sizes = {tuple(length >> level for length in shape[2:]) for level in range(4)}
        self.found = []

    def is_map(self, x):
        """Whether it is a feature map of several channels, and no kernel or table of attention."""
        return (
            isinstance(x, torch.Tensor)
            and not x.is_mkldnn  # oneDNN's own form of it
            and x.ndim == self.rank
            and x.shape[0] == self.batch
            and x.shape[1] > 1
            and tuple(x.shape[2:]) in self.sizes
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("clone", "_to_copy", "copy_"):
            source = args[name == "copy_"]
            if self.is_map(source) and self.is_map(result) and order(source) != order(result):
                self.found.append(f"{name} of {tuple(source.shape)} from {source.stride()} to {result.stride()}")
        if any(word in name for word in ("convolution", "group_norm", "batch_norm", "pool", "upsample")):
            given = [x for x in args[: 2 if "backward" in name else 1] if self.is_map(x)]
            self.found += [f"{name} of {tuple(x.shape)}, {x.stride()}" for x in given if order(x)[-1] != 1]
        return result


def turned(network, x, *more):
    """What is turned round in a forward and a backward pass."""
    parameters = [weight for weight in network.parameters() if weight.requires_grad]
    with Turned(x.shape) as seen:
        answers = network(x, *more)
        each = answers.values() if isinstance(answers, dict) else [answers]
        torch.autograd.grad(sum(answer.square().sum() for answer in each), parameters, allow_unused=True)
    return seen.found


def image(ndim, channels=2, size=8):
    return torch.randn(3, channels, *(size, 2 * size, size)[-ndim:])


@pytest.mark.parametrize("ndim", [3])  # planes are contiguous on a CPU
@pytest.mark.parametrize("name", UNETS)
def test_unets_keep_their_layout(name, ndim):
    network = UNet(ndim=ndim, in_channels=2, **UNETS[name])
    x = nd.arranged(image(ndim))
    assert turned(network, x, torch.tensor([3, 4, 5])) == []


@pytest.mark.parametrize("ndim", [3])
def test_unets_on_blocks_of_voxels_turn_at_their_ends_alone(ndim):
    for kind in (FoldedUNet, HaarUNet):
        found = turned(kind(ndim=ndim, **SMALL), image(ndim, 1))
        assert len(found) <= 2, (kind, found)


@pytest.mark.parametrize("ndim", [3])
@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_keep_their_layout(name, ndim):
    network = build_backbone(BACKBONES[name], ndim=ndim, in_channels=2)
    assert turned(network, nd.arranged(image(ndim, size=16))) == []
    assert turned(BackboneHeatmaps(network, width=8), nd.arranged(image(ndim, size=16))) == []


def test_a_contiguous_map_in_between_is_found():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nd.conv(3)(2, 4, 3, padding=1), nd.conv(3)(4, 4, 1)

        def forward(self, x):
            return self.second(self.first(x).contiguous())

    assert len(turned(Turning(), nd.arranged(image(3)))) > 0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_a_convolution_answers_in_its_layout_whatever_it_is_given(ndim, channels, kernel, stride):
    layer = nd.conv(ndim)(channels, 4, kernel, stride)
    x = torch.randn(2, channels, *(8,) * ndim, requires_grad=True)
    y = layer(x)
    assert (order(y)[-1] == 1) == (ndim == 3)
    plain = torch.nn.functional.conv3d if ndim == 3 else torch.nn.functional.conv2d
    expected = plain(x, layer.weight.contiguous(), layer.bias, stride)
    torch.testing.assert_close(y, expected)
    grad = torch.randn(y.shape)
    wanted = [x, layer.weight, layer.bias]
    torch.testing.assert_close(torch.autograd.grad(y, wanted, grad), torch.autograd.grad(expected, wanted, grad))

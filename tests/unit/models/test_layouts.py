"""Channels-last from a network's first layer to its last: nothing is turned round in memory on the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from voxelry.backbones.build import build_backbone
from voxelry.models.backbone_heatmaps import BackboneHeatmaps
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.models.sam3d.structure_vae import StructureCoder, StructureSettings
from voxelry.models.shape import Prompt, ShapeNet
from voxelry.models.shape.autoencoder import ShapeAutoencoder
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
    "fpn, normed": {"name": "fpn", "backbone": RESNET, "out_channels": 8, "norm": "group", "extra": None},
}


def order(x):
    """Axes from the farthest apart in memory to the nearest, without those of one entry."""
    return sorted((axis for axis in range(x.ndim) if x.shape[axis] > 1), key=lambda axis: -x.stride(axis))


class Turned(TorchDispatchMode):
    """Notes copies of feature maps to another layout, and those in another one that a convolution or norm is given."""

    def __init__(self, shape, *, regions=()):
        super().__init__()
        self.rank, self.batch = len(shape), shape[0]
        self.sizes = {tuple(-(-length // 2**level) for length in shape[2:]) for level in range(4)}
        self.regions = {(size,) * (self.rank - 2) for size in regions}  # of which there may be any number
        self.found = []

    def is_map(self, x):
        """Whether it is a feature map of several channels, and no kernel or table of attention."""
        return (
            isinstance(x, torch.Tensor)
            and not x.is_mkldnn  # oneDNN's own form of it
            and x.ndim == self.rank
            and x.shape[1] > 1
            and ((x.shape[0] == self.batch and tuple(x.shape[2:]) in self.sizes) or tuple(x.shape[2:]) in self.regions)
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


def turned(network, x, *more, run=None, regions=()):
    """What is turned round in a forward and a backward pass, of the network or of `run`."""
    parameters = [weight for weight in network.parameters() if weight.requires_grad]
    with Turned(x.shape, regions=regions) as seen:
        answers = (run or network)(x, *more)
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


@pytest.mark.parametrize("size", [15, 18])  # levels that aren't half as long as those before them
def test_pyramids_of_any_size_keep_their_layout(size):
    network = build_backbone(BACKBONES["fpn"], ndim=3, in_channels=2)
    assert turned(network, nd.arranged(image(3, size=size))) == []


@pytest.mark.parametrize("head", ["mlp", "conv"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_detectors_keep_their_layout(head, checkpointing):
    network = MaskRCNN(
        build_backbone(BACKBONES["fpn"], ndim=3, in_channels=1),
        anchors={"sizes": [[6], [9], [12]], "ratios": [1.0], "z_ratios": [1.0]},
        rpn={"depth": 2},
        box={"head": head, "channels": 8, "convs": (6, 6), "norm": "group", "output_size": 5},
        mask={"convs": (6, 6), "norm": "group", "output_size": 7, "chunk": 512, "checkpointing": checkpointing},
        regions={"canonical_size": 8.0, "canonical_level": 2.0},
    )
    boxes = torch.tensor([[1.0, 2, 1, 7, 9, 6], [2.0, 9, 3, 14, 24, 13]])
    masks = torch.zeros(3, 16, 32, 16, dtype=torch.int64)
    masks[:, 1:7, 2:9, 1:6], masks[:, 2:14, 9:24, 3:13] = 1, 2
    found = turned(
        network,
        image(3, 1, size=16),
        run=lambda x: network.losses(x, [boxes] * 3, None, masks),
        regions=(7,) if head == "mlp" else (5, 7),  # fully connected layers alone take them as they come
    )
    assert len(found) == (head == "conv"), found  # before a fully connected layer


def prompt():
    """What a network of shapes is asked, of two slices."""
    plane = torch.tensor([[0.05, 0.0, -0.4], [0.0, 0.05, -0.4], [0.01, 0.02, 0.1]]).expand(3, 2, 3, 3)
    return Prompt.build(torch.randn(3, 2, 1, 16, 16), plane, click=torch.full((3, 2, 2), 7.0))


SHAPES = {
    "conv": {"width": 8, "multipliers": (1, 2), "volume_width": 8, "volume_multipliers": (1, 2), "focus_grid": 8},
    "transformer": {"patch": 4, "dim": 16, "depth": 1, "decoder_depth": 1, "heads": 2, "tokens": 4, "volume_width": 8},
}


@pytest.mark.parametrize("decoder", SHAPES)
def test_networks_of_shapes_keep_their_layout(decoder):
    network = ShapeNet(decoder=decoder, grid=16, image_size=16, context=16, prior_grid=16, **SHAPES[decoder])
    found = turned(network, image(3, size=16)[:, :, :, :16], run=lambda x: network(prompt()).sdf)
    assert found == []


def test_the_autoencoders_of_shapes_keep_their_layout():
    shapes = torch.randn(3, 1, 16, 16, 16)
    coder = ShapeAutoencoder(grid=16, latent_grid=4, channels=4, width=6)
    assert turned(coder, shapes, run=lambda x: coder(x)[0]) == []
    structure = StructureCoder(StructureSettings(latent_channels=4, widths=(6, 8), blocks=1, middle_blocks=1))
    assert turned(structure, shapes, run=lambda x: structure(x)[0]) == []


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

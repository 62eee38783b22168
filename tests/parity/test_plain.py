"""Networks of the originals written down plainly, with weights made here, against ours rebuilt from those weights.

The other files of this folder compare with recorded outputs of the originals, which are kept elsewhere; these need
nothing. Each network is a function that makes a tensor, under the original's name, when it first asks for it.
"""

from __future__ import annotations

from math import log, prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.interop import from_reference


class Plain:
    """Layers of plain functions, and the tensors that they have used so far by name."""

    def __init__(self, ndim: int):
        self.ndim = ndim
        self.tensors: dict[str, Tensor] = {}
        self._random = torch.Generator().manual_seed(0)

    def get(self, name: str, *shape: int, spread: float = 1.0, middle: float = 0.0) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = middle + spread * torch.randn(shape, generator=self._random)
        return self.tensors[name]

    def conv(self, x: Tensor, name: str, out: int, size: int = 3, *, bias: bool = True, **how: int) -> Tensor:
        shape = (out, x.shape[1], *(size,) * self.ndim)
        weight = self.get(f"{name}.weight", *shape, spread=prod(shape[1:]) ** -0.5)
        function = F.conv2d if self.ndim == 2 else F.conv3d
        return function(x, weight, self.get(f"{name}.bias", out, spread=0.1) if bias else None, **how)

    def linear(self, x: Tensor, name: str, out: int) -> Tensor:
        weight = self.get(f"{name}.weight", out, x.shape[-1], spread=x.shape[-1] ** -0.5)
        return F.linear(x, weight, self.get(f"{name}.bias", out, spread=0.1))

    def norm(self, x: Tensor, name: str, groups: int, eps: float = 1e-5) -> Tensor:
        weight, bias = (self.get(f"{name}.{end}", x.shape[1], spread=0.1, middle=end == "weight") for end in ENDS)
        return F.group_norm(x, groups, weight, bias, eps)

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self.get(f"{name}.{end}", x.shape[1], spread=0.1, middle=end == "weight") for end in ENDS)
        mean = self.get(f"{name}.running_mean", x.shape[1], spread=0.1)
        variance = self.get(f"{name}.running_var", x.shape[1], spread=0.05, middle=1.0)
        return F.batch_norm(x, mean, variance, weight, bias)


ENDS = ("weight", "bias")


def waves(time: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of frequencies from 1 down to 1e-4, `(B, width)`."""
    rates = torch.exp(torch.arange(width // 2) * (-log(10000) / (width // 2 - 1)))
    angles = time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fast_ddpm(net: Plain, x: Tensor, time: Tensor, width: int = 32) -> Tensor:
    """The U-Net of Ho et al. 2020 with one block a level, of two levels, with attention at the coarser one."""
    embedding = net.linear(waves(time, width), "temb.dense.0", 4 * width)
    embedding = F.silu(net.linear(F.silu(embedding), "temb.dense.1", 4 * width))

    def block(x: Tensor, name: str, out: int) -> Tensor:
        y = net.conv(F.silu(net.norm(x, f"{name}.norm1", 32, 1e-6)), f"{name}.conv1", out, padding=1)
        y = y + net.linear(embedding, f"{name}.temb_proj", out)[..., *(None,) * net.ndim]
        y = net.conv(F.silu(net.norm(y, f"{name}.norm2", 32, 1e-6)), f"{name}.conv2", out, padding=1)
        return (x if x.shape[1] == out else net.conv(x, f"{name}.nin_shortcut", out, 1)) + y

    def attend(x: Tensor, name: str) -> Tensor:
        y = net.norm(x, f"{name}.norm", 32, 1e-6)
        q, k, v = (net.conv(y, f"{name}.{part}", x.shape[1], 1).flatten(2) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=2)
        return x + net.conv((v @ weights.transpose(1, 2)).reshape(x.shape), f"{name}.proj_out", x.shape[1], 1)

    skips = [net.conv(x, "conv_in", width, padding=1)]
    skips.append(block(skips[-1], "down.0.block.0", width))
    skips.append(net.conv(F.pad(skips[-1], (0, 1) * net.ndim), "down.0.downsample.conv", width, stride=2))
    skips.append(attend(block(skips[-1], "down.1.block.0", 2 * width), "down.1.attn.0"))
    x = block(attend(block(skips[-1], "mid.block_1", 2 * width), "mid.attn_1"), "mid.block_2", 2 * width)
    for place in range(2):
        x = attend(block(torch.cat([x, skips.pop()], 1), f"up.1.block.{place}", 2 * width), f"up.1.attn.{place}")
    x = net.conv(F.interpolate(x, scale_factor=2.0), "up.1.upsample.conv", 2 * width, padding=1)
    for place in range(2):
        x = block(torch.cat([x, skips.pop()], 1), f"up.0.block.{place}", width)
    return net.conv(F.silu(net.norm(x, "norm_out", 32, 1e-6)), "conv_out", 1, padding=1)


def pretraining(net: Plain, x: Tensor, time: Tensor, estimate: Tensor, width: int = 8) -> Tensor:
    """The U-Net of Di Via et al. 2025 with two levels, 4 groups and 4 heads of 4 channels."""
    embedding = F.gelu(net.linear(waves(time, width), "time_mlp.1", 4 * width))
    embedding = F.silu(net.linear(embedding, "time_mlp.3", 4 * width))
    spatial = tuple(range(1, net.ndim + 2))

    def part(x: Tensor, name: str, out: int, scale: Tensor | None = None) -> Tensor:
        net.conv(x, f"{name}.proj", out, padding=1)  # makes the weight, which is standardised here
        raw = net.tensors[f"{name}.proj.weight"]
        variance, mean = torch.var_mean(raw, dim=spatial, correction=0, keepdim=True)
        standard = (raw - mean) * (variance + 1e-5).rsqrt()
        function = F.conv2d if net.ndim == 2 else F.conv3d
        y = net.norm(function(x, standard, net.tensors[f"{name}.proj.bias"], padding=1), f"{name}.norm", 4)
        if scale is not None:
            by, plus = scale[..., *(None,) * net.ndim].chunk(2, dim=1)
            y = y * (by + 1) + plus
        return F.silu(y)

    def block(x: Tensor, name: str, out: int) -> Tensor:
        y = part(x, f"{name}.block1", out, net.linear(embedding, f"{name}.mlp.1", 2 * out))
        y = part(y, f"{name}.block2", out)
        return y + (x if x.shape[1] == out else net.conv(x, f"{name}.res_conv", out, 1))

    def heads(x: Tensor, name: str) -> tuple[Tensor, ...]:
        y = net.conv(net.norm(x, f"{name}.norm", 1), f"{name}.fn.to_qkv", 48, 1, bias=False)
        return y.flatten(2).unflatten(1, (3, 4, 4)).unbind(1)  # (B, heads, channels, voxels) each

    def linear_attention(x: Tensor, name: str) -> Tensor:
        q, k, v = heads(x, f"{name}.fn")
        context = torch.softmax(k, dim=3) @ v.transpose(2, 3)
        y = context.transpose(2, 3) @ (torch.softmax(q, dim=2) * 0.5)
        y = net.conv(y.reshape(len(x), 16, *x.shape[2:]), f"{name}.fn.fn.to_out.0", x.shape[1], 1)
        return x + net.norm(y, f"{name}.fn.fn.to_out.1", 1)

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = heads(x, f"{name}.fn")
        y = v @ torch.softmax(q.transpose(2, 3) @ k * 0.5, dim=3).transpose(2, 3)
        return x + net.conv(y.reshape(len(x), 16, *x.shape[2:]), f"{name}.fn.fn.to_out", x.shape[1], 1)

    first = x = net.conv(torch.cat([estimate, x], 1), "init_conv", width, 1)
    skips = []
    for level in range(2):
        x = block(x, f"downs.{level}.0", width)
        skips.append(x)
        x = linear_attention(block(x, f"downs.{level}.1", width), f"downs.{level}.2")
        skips.append(x)
        if level == 0:
            for axis in range(2, x.ndim):  # a cube of voxels becomes channels, its last axis the fastest
                x = x.unfold(axis, 2, 2)
            x = x.movedim(tuple(range(-net.ndim, 0)), tuple(range(2, 2 + net.ndim))).flatten(1, 1 + net.ndim)
            x = net.conv(x, "downs.0.3.1", width, 1)
        else:
            x = net.conv(x, "downs.1.3", 2 * width, padding=1)
    x = block(attention(block(x, "mid_block1", 2 * width), "mid_attn"), "mid_block2", 2 * width)
    for level, out in enumerate((2 * width, width)):
        x = block(torch.cat([x, skips.pop()], 1), f"ups.{level}.0", out)
        x = linear_attention(block(torch.cat([x, skips.pop()], 1), f"ups.{level}.1", out), f"ups.{level}.2")
        if level == 0:
            x = net.conv(F.interpolate(x, scale_factor=2.0), "ups.0.3.1", width, padding=1)
        else:
            x = net.conv(x, "ups.1.3", width, padding=1)
    return net.conv(block(torch.cat([x, first], 1), "final_res_block", width), "final_conv", 1, 1)


def resnet_fpn(net: Plain, x: Tensor, bottleneck: bool) -> dict[str, Tensor]:
    """Four stages of one block (He et al. 2016), and a pyramid over them (Lin et al. 2017)."""

    def layer(x: Tensor, name: str, number: int, out: int, size: int, **how: int) -> Tensor:
        y = net.conv(x, f"body.{name}.conv{number}", out, size, bias=False, padding=size // 2, **how)
        return net.batch_norm(y, f"body.{name}.bn{number}")

    def block(x: Tensor, stage: int) -> Tensor:
        name, width, stride = f"layer{stage}.0", 8 << (stage - 1), 1 if stage == 1 else 2
        if bottleneck:
            y = F.relu(layer(F.relu(layer(x, name, 1, width, 1)), name, 2, width, 3, stride=stride))
            y = layer(y, name, 3, 4 * width, 1)
        else:
            y = layer(F.relu(layer(x, name, 1, width, 3, stride=stride)), name, 2, width, 3)
        if y.shape != x.shape:
            x = net.conv(x, f"body.{name}.downsample.0", y.shape[1], 1, bias=False, stride=stride)
            x = net.batch_norm(x, f"body.{name}.downsample.1")
        return F.relu(x + y)

    x = net.conv(x, "body.conv1", 8, 7, bias=False, stride=2, padding=3)
    x = F.max_pool2d(F.relu(net.batch_norm(x, "body.bn1")), 3, 2, 1)
    stages = []
    for stage in range(1, 5):
        x = block(x, stage)
        stages.append(x)
    sides = [net.conv(y, f"fpn.inner_blocks.{n}.0", 16, 1) for n, y in enumerate(stages)]
    for level in (2, 1, 0):
        sides[level] = sides[level] + F.interpolate(sides[level + 1], size=sides[level].shape[2:])
    levels = {f"p{n + 2}": net.conv(y, f"fpn.layer_blocks.{n}.0", 16, padding=1) for n, y in enumerate(sides)}
    return levels | {"pool": F.max_pool2d(levels["p5"], 1, 2)}


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.05, "whoever answers nothing agrees, too"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


TIME = torch.tensor([3.0, 421.0])


@torch.no_grad()
def test_the_unet_of_fast_ddpm():
    net, x = Plain(2), torch.randn(2, 2, 12, 8)
    expected = fast_ddpm(net, x, TIME)
    case = {"in_channels": 2, "out_ch": 1, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8],
            "dropout": 0.0, "resamp_with_conv": True, "image_size": 16}  # fmt: skip
    for given in (case, {}):
        assert_close(from_reference("fast-ddpm", given, net.tensors)(x, TIME), expected)


@pytest.mark.parametrize("ndim", [2, 3])
@torch.no_grad()
def test_the_unet_of_the_pretraining(ndim):
    net, (x, estimate) = Plain(ndim), torch.randn(2, 2, 1, *(8, 12, 4)[:ndim])
    expected = pretraining(net, x, TIME, estimate)
    case = {"dim": 8, "channels": 1, "dim_mults": [1, 2], "self_condition": True, "resnet_block_groups": 4,
            "att_heads": 4, "att_res": 4, "is_3d": ndim == 3}  # fmt: skip
    for given in (case, {}):
        assert_close(from_reference("diffusion-xray", given, net.tensors)(x, TIME, estimate), expected)


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@torch.no_grad()
def test_a_resnet_and_its_pyramid(block):
    net, x = Plain(2), torch.randn(2, 3, 64, 72)
    expected = resnet_fpn(net, x, block == "Bottleneck")
    found = from_reference("torchvision-resnet-fpn", {"block": block}, net.tensors)(x)
    assert list(found) == list(expected)
    for level in expected:
        assert_close(found[level], expected[level])

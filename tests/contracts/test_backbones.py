"""What holds for every backbone, whatever is inside."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from voxelry.backbones import Backbone, build_backbone
from voxelry.backbones.build import BACKBONES
from voxelry.core.errors import SettingError

RESNET = {"name": "resnet", "width": 4, "layers": [1, 1, 1, 1]}
VIT = {"image_size": 32, "patch_size": 8, "dim": 8, "depth": 2, "heads": 2, "window_size": 2, "window_blocks": [0]}
HIERA = {"name": "hiera", "input_size": 32, "embed_dim": 8, "stages": [1, 1, 1], "q_pool": 2, "mask_unit_size": 4}

CASES = {
    "resnet basic": RESNET,
    "resnet bottleneck": {**RESNET, "block": "bottleneck", "levels": ["p2", "p3"]},
    "resnet group norm": {**RESNET, "norm": "group", "levels": {"p3": "fine", "p5": "coarse"}},
    "resnet dilated": {**RESNET, "dilated": [False, False, False, True]},
    "fpn": {"name": "fpn", "backbone": RESNET, "out_channels": 4},
    "fpn batch norm": {"name": "fpn", "backbone": RESNET, "out_channels": 4, "norm": "batch", "extra": None},
    "fpn on hiera": {"name": "fpn", "backbone": HIERA, "out_channels": 4},
    "hiera": HIERA,
    "hiera separate positions": {**HIERA, "sep_pos_embed": True},
    "vit": {"name": "vit", **VIT, "residual_blocks": [1]},
    "vitdet": {"name": "vitdet", **VIT, "out_channels": 4},
    "vitdet plain": {"name": "vitdet", **VIT, "out_channels": 4, "relative_positions": False, "norm": False,
                     "absolute_positions": False, "scale_factors": [2, 1], "extra": "maxpool"},
}  # fmt: skip

# strides that differ per axis, of which the first is the smallest; `{n}` axes in all
ANISOTROPIC = {
    "resnet": lambda n: {**RESNET, "stem_stride": uneven(n, 1, 2), "stage_strides": [1, uneven(n, 1, 2), 2, 2]},
    "fpn": lambda n: {"name": "fpn", "backbone": ANISOTROPIC["resnet"](n), "out_channels": 4},
    "hiera": lambda n: {**HIERA, "patch_stride": uneven(n, 2, 4), "patch_kernel": uneven(n, 3, 7),
                        "patch_padding": uneven(n, 1, 3)},
    "vit": lambda n: {"name": "vit", **VIT, "patch_size": uneven(n, 2, 8), "window_size": uneven(n, 1, 3)},
    "vitdet": lambda n: {"name": "vitdet", **VIT, "patch_size": uneven(n, 2, 8), "out_channels": 4,
                         "scale_factors": [uneven(n, 1, 2), 1, 0.5]},
}  # fmt: skip

SIZES = {2: [(32, 32), (33, 41), (5, 64)], 3: [(16, 32, 32), (7, 33, 18), (1, 20, 35)]}


def uneven(ndim: int, first: int, others: int) -> list[int]:
    return [first] + [others] * (ndim - 1)


def build(description: dict, ndim: int, in_channels: int = 1) -> Backbone:
    return build_backbone(description, ndim=ndim, in_channels=in_channels).eval()


def stir(backbone: Backbone) -> None:
    """Give every parameter a value that matters: some start at zero."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def check_levels(backbone: Backbone, x: torch.Tensor) -> None:
    levels = backbone(x)
    assert list(levels) == list(backbone.strides) == list(backbone.out_channels)
    for name, level in levels.items():
        stride = backbone.strides[name]
        assert len(stride) == backbone.ndim
        expected = [-(-size // step) for size, step in zip(x.shape[2:], stride, strict=True)]
        assert list(level.shape) == [len(x), backbone.out_channels[name], *expected], name
        assert torch.isfinite(level).all()
    strides = list(backbone.strides.values())
    for fine, coarse in itertools.pairwise(strides):
        assert all(a <= b for a, b in zip(fine, coarse, strict=True))


def test_every_backbone_is_tried():
    # the U-Net has parts that a detector leaves alone, and tests of its own (models/test_unet_backbone.py)
    assert {case["name"] for case in CASES.values()} == set(ANISOTROPIC) == set(BACKBONES) - {"unet"}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_levels_have_the_sizes_and_channels_that_are_promised(case, ndim):
    backbone = build(CASES[case], ndim, in_channels=2)
    assert (backbone.ndim, backbone.in_channels) == (ndim, 2)
    for size in SIZES[ndim]:
        check_levels(backbone, torch.randn(1, 2, *size))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ANISOTROPIC)
@torch.no_grad()
def test_strides_may_differ_per_axis(name, ndim):
    backbone = build(ANISOTROPIC[name](ndim), ndim)
    assert all(stride[0] < stride[-1] for stride in backbone.strides.values())
    for size in SIZES[ndim]:
        check_levels(backbone, torch.randn(1, 1, *size))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_settings_build_it_again(case):
    backbone = build(CASES[case], 2)
    description = json.loads(json.dumps(backbone.describe()))
    assert description == backbone.describe()
    again = build_backbone(description).eval()
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 1, 33, 41)
    for name, level in backbone(x).items():
        assert torch.equal(level, again(x)[name])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_parameter(case, ndim):
    backbone = build(CASES[case], ndim)
    stir(backbone)
    levels = backbone(torch.randn(2, 1, *[32] * ndim))
    sum(level.square().sum() for level in levels.values()).backward()
    silent = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    silent += [name for name, parameter in backbone.named_parameters()
               if parameter.grad is not None and not parameter.grad.abs().sum() > 0]  # fmt: skip
    # what is the same for all keys leaves a softmax alone, and tables hold rows for distances that don't occur
    assert [name for name in silent if not name.endswith("qkv.bias")] == []


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_samples_do_not_see_each_other(case):
    backbone = build(CASES[case], 2)
    stir(backbone)
    x = torch.randn(3, 1, 32, 48)
    whole, alone = backbone(x), backbone(x[1:2])
    for name, level in alone.items():
        torch.testing.assert_close(level, whole[name][1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_wrong_images_are_refused(case):
    backbone = build(CASES[case], 3)
    for shape in ((1, 1, 32, 32), (1, 2, 32, 32, 32), (1, 32, 32, 32)):
        with pytest.raises(SettingError, match=r"x: expected shape \(B, 1, D, H, W\)"):
            backbone(torch.zeros(shape))


PER_AXIS = {"stem_kernel", "stem_stride", "pool_kernel", "pool_stride", "patch_size", "image_size", "window_size"}


def reorder(key: str, value: object, order: list[int]) -> object:
    """A setting of the backbone whose images have their axes in another order."""
    if key == "backbone":
        return {name: reorder(name, item, order) for name, item in value.items()}
    if key in ("stage_strides", "scale_factors"):
        return [[one[axis] for axis in order] if isinstance(one, list) else one for one in value]
    return [value[axis] for axis in order] if key in PER_AXIS and isinstance(value, list) else value


def reordered_weights(backbone: Backbone, order: list[int]) -> dict[str, torch.Tensor]:
    """Its weights: kernels and tables of places permuted, tables of distances renamed."""
    state = {}
    for key, value in backbone.state_dict().items():
        stem, _, last = key.rpartition(".")
        if stem.endswith("positions.tables"):
            state[f"{stem}.{order.index(int(last))}"] = value
        elif key.endswith("positions.table"):
            state[key] = value.permute(0, *(1 + axis for axis in order), -1)
        else:
            kernel = value.ndim == backbone.ndim + 2
            state[key] = value.permute(0, 1, *(2 + axis for axis in order)) if kernel else value
    return state


@pytest.mark.parametrize("order", [[1, 0], [2, 0, 1], [0, 2, 1]], ids=str)
@pytest.mark.parametrize("name", ["resnet", "fpn", "vit", "vitdet"])
@torch.no_grad()
def test_permuted_axes_permute_the_levels(name, order):
    ndim = len(order)
    backbone = build(ANISOTROPIC[name](ndim) | ({"window_blocks": [0]} if "vit" in name else {}), ndim)
    stir(backbone)
    other = build_backbone(reorder("backbone", backbone.describe(), order)).eval()
    other.load_state_dict(reordered_weights(backbone, order))
    x = torch.randn(1, 1, *SIZES[ndim][1])
    axes = [0, 1, *(2 + axis for axis in order)]
    found, expected = other(x.permute(axes)), backbone(x)
    for level, features in expected.items():
        assert features.std() > 1e-3
        torch.testing.assert_close(found[level], features.permute(axes), rtol=1e-4, atol=1e-5)

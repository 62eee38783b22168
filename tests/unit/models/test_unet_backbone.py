"""The pretrained U-Net as a backbone, and what a detector takes over of other networks."""

import json

import pytest
import torch
from torch import nn

from voxelry.backbones.build import build_backbone
from voxelry.backbones.fpn import FPN
from voxelry.core.errors import SettingError
from voxelry.models.transfer import best_transfer
from voxelry.models.unet import UNet
from voxelry.models.unet.backbone import UNetBackbone
from voxelry.models.unet.folded import FoldedUNet

SMALL = {"width": 8, "multipliers": (1, 2, 4), "groups": 4, "heads": 2, "head_dim": 8}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"fold": 2}, {"finest": 1}, {"wiring": "dense"}])
def test_levels_have_the_strides_and_channels_they_promise(ndim, settings):
    backbone = UNetBackbone(ndim=ndim, in_channels=2, **SMALL, **settings)
    size = (13, 18, 9)[:ndim]
    levels = backbone(torch.rand(1, 2, *size))
    assert list(levels) == list(backbone.strides) == list(backbone.out_channels)
    for name, level in levels.items():
        stride = backbone.strides[name]
        expected = (1, backbone.out_channels[name], *(-(-n // s) for n, s in zip(size, stride, strict=True)))
        assert tuple(level.shape) == expected


def test_strides_may_differ_between_axes():
    backbone = UNetBackbone(ndim=3, strides=((1, 2, 2), 2), **SMALL)
    assert list(backbone.strides.values()) == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    assert [tuple(x.shape[2:]) for x in backbone(torch.rand(1, 1, 5, 9, 9)).values()] == [
        (5, 9, 9),
        (5, 5, 5),
        (3, 3, 3),
    ]


def test_a_description_builds_it_again():
    backbone = UNetBackbone(ndim=2, finest=1, fold=(1, 2), **SMALL)
    again = build_backbone(json.loads(json.dumps(backbone.describe())))
    again.load_state_dict(backbone.state_dict())
    x = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(again(x), backbone(x))
    with pytest.raises(SettingError, match="finest: expected a level from 0 to 2"):
        UNetBackbone(ndim=2, finest=3, **SMALL)


@pytest.mark.parametrize("kind", [UNet, FoldedUNet])
def test_it_answers_with_the_decoder_of_the_network_it_takes_over(kind):
    fold = {"fold": 2} if kind is FoldedUNet else {}
    pretrained = kind(ndim=2, **SMALL, **fold).eval()
    backbone = UNetBackbone(ndim=2, **SMALL, **fold).eval()
    report = best_transfer(FPN(backbone, out_channels=4), pretrained.state_dict())
    assert not report.new
    assert {name.split(".")[0] for name in report.skipped} == {"final", "head"}
    finest = []
    pretrained.up[-1].resample.register_forward_pre_hook(lambda module, inputs: finest.append(inputs[0]))
    x = torch.rand(1, 1, 16, 24)
    pretrained(x)
    torch.testing.assert_close(next(iter(backbone(x).values())), finest[0])


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.classes = nn.Linear(4, 3)


def test_the_part_that_fits_best_is_taken_over_wherever_it_lies():
    resnet = {"name": "resnet", "ndim": 2, "width": 4, "layers": [1, 1], "levels": ["p2", "p3"]}

    def pyramid(channels):
        return FPN(resnet, out_channels=channels)

    target, same, other = Detector(pyramid(4)), Detector(pyramid(4)), Detector(pyramid(6))
    whole = best_transfer(target, same.state_dict())
    assert not whole.new
    torch.testing.assert_close(target.state_dict(), same.state_dict())
    inner = best_transfer(target, other.backbone.backbone.state_dict())
    assert not inner.new
    torch.testing.assert_close(target.backbone.backbone.state_dict(), other.backbone.backbone.state_dict())
    named = {f"encoder.{name}": value for name, value in same.backbone.state_dict().items()}
    prefixed = best_transfer(target, {**named, "decoder.weight": torch.rand(2, 2)})
    assert not prefixed.new
    assert prefixed.skipped == {"decoder.weight": (2, 2)}


def test_kernels_of_a_lower_rank_are_lifted():
    flat = build_backbone({"name": "resnet", "ndim": 2, "width": 4, "layers": [1], "levels": ["p2"]})
    deep = build_backbone({"name": "resnet", "ndim": 3, "width": 4, "layers": [1], "levels": ["p2"]})
    report = best_transfer(Detector(deep), flat.state_dict())
    assert not report.new
    assert report.adapted

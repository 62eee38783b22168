"""The feature pyramid, and building backbones from descriptions."""

import pytest
import torch
import torch.nn.functional as F

from voxelry.backbones import FPN, ResNet, build_backbone
from voxelry.core.errors import SettingError

TINY = {"name": "resnet", "width": 2, "layers": [1, 1, 1, 1]}


@pytest.mark.parametrize(("ndim", "sizes"), [(2, [(7, 5), (4, 3), (2, 2)]), (3, [(3, 7, 5), (3, 4, 3), (2, 2, 2)])])
@torch.no_grad()
def test_each_level_is_itself_and_the_nearest_of_what_is_coarser(ndim, sizes):
    pyramid = FPN(ResNet(ndim=ndim, width=2, layers=(1, 1, 1), levels=("p2", "p3", "p4")), out_channels=1)
    for lateral, merge in zip(pyramid.lateral, pyramid.merge, strict=True):  # sums of channels, passed on unchanged
        lateral[0].weight.fill_(1.0)
        lateral[0].bias.zero_()
        merge[0].weight.zero_()[(0, 0, *[1] * ndim)] = 1.0
        merge[0].bias.zero_()
    channels = pyramid.backbone.out_channels
    given = {name: torch.randn(1, channels[name], *size) for name, size in zip(channels, sizes, strict=True)}
    found = pyramid.pyramid(given)
    expected = given["p4"].sum(1, keepdim=True)
    torch.testing.assert_close(found["p4"], expected)
    assert torch.equal(found["pool"], found["p4"][(slice(None), slice(None), *[slice(None, None, 2)] * ndim)])
    for name in ("p3", "p2"):
        expected = given[name].sum(1, keepdim=True) + F.interpolate(expected, size=given[name].shape[2:])
        torch.testing.assert_close(found[name], expected)
    assert list(found) == ["p2", "p3", "p4", "pool"]


def test_a_normalised_pyramid_has_no_bias():
    pyramid = FPN(ResNet(ndim=2, width=2, layers=(1, 1, 1, 1)), out_channels=4, norm="batch", extra=None)
    assert pyramid.lateral[0][0].bias is None
    assert "pool" not in pyramid.strides


def test_descriptions_leave_rank_and_channels_open():
    nested = {"name": "fpn", "backbone": TINY, "out_channels": 4}
    built = build_backbone(nested, ndim=3, in_channels=2)
    assert (built.ndim, built.in_channels) == (3, 2)
    assert built.describe()["backbone"]["ndim"] == 3
    given = build_backbone({**TINY, "ndim": 2}, ndim=3, in_channels=2)
    assert given.ndim == 2  # what a description says stands
    assert nested == {"name": "fpn", "backbone": TINY, "out_channels": 4}


def test_descriptions_that_are_wrong():
    with pytest.raises(SettingError, match="backbone: expected one of resnet"):
        build_backbone({"name": "vgg", "ndim": 2})
    with pytest.raises(SettingError, match="backbone: expected one of resnet"):
        build_backbone({"ndim": 2})
    with pytest.raises(SettingError, match="backbone resnet: got an unexpected keyword argument 'depth'"):
        build_backbone({**TINY, "ndim": 2, "depth": 3})
    with pytest.raises(SettingError, match="backbone resnet: missing a required argument: 'ndim'"):
        build_backbone(TINY)
    with pytest.raises(SettingError, match="extra: expected one of maxpool, None"):
        FPN(ResNet(ndim=2, width=2), extra="p6p7")

"""What the engine asks of any network."""

import pytest

from voxelry.backbones.build import build_backbone
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.models.networks import input_channels
from voxelry.models.unet import UNet
from voxelry.models.unet.folded import FoldedUNet

SMALL = {"width": 8, "multipliers": (1, 2), "groups": 4, "heads": 2, "head_dim": 8}


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_those_of_the_image(channels):
    detector = {"name": "fpn", "out_channels": 8, "backbone": {"name": "resnet", "width": 8, "levels": ["p2", "p3"]}}
    networks = (
        UNet(ndim=3, in_channels=channels, **SMALL),
        FoldedUNet(ndim=3, fold=2, in_channels=channels, **SMALL),
        MaskRCNN(build_backbone(detector, ndim=2, in_channels=channels)),
    )
    assert [input_channels(network) for network in networks] == [channels] * 3

"""The networks that bundles and checkpoints may hold, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from voxelry.core.registry import Registry

__all__ = ["NETWORKS", "build_network", "describe_network", "image_rank", "input_channels"]

NETWORKS: Registry[type[nn.Module]] = Registry(
    "networks",
    "network",
    {
        "unet": "voxelry.models.unet:UNet",
        "folded_unet": "voxelry.models.unet.folded:FoldedUNet",
        "haar_unet": "voxelry.models.unet.haar:HaarUNet",
        "masked_autoencoder": "voxelry.models.mae:MaskedAutoencoder",
        "backbone_heatmaps": "voxelry.models.backbone_heatmaps:BackboneHeatmaps",
        "mask_rcnn": "voxelry.models.mask_rcnn:MaskRCNN",
        "shape_net": "voxelry.models.shape:ShapeNet",
        "shape_flow": "voxelry.models.shape:ShapeFlow",
        "sam3d_net": "voxelry.models.sam3d.net:TwoStageNet",
    },
)
"""Networks by the name that a bundle has for them."""


def build_network(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """A new network from what its `settings()` gave."""
    return NETWORKS[name](**settings)


def describe_network(network: nn.Module) -> dict[str, Any]:
    """The `name` of a network and the settings that `build_network` makes it from again.

    Raises:
        SettingError: it is of a kind that has no name.
    """
    own: Any = network
    return {"name": NETWORKS.name_of(type(network)), **own.settings()}


def image_rank(network: nn.Module) -> int:
    """Rank of the images that a network takes, 2 or 3."""
    own: Any = network
    return int(own.ndim)


def input_channels(network: nn.Module) -> int:
    """Channels of the images that a network takes, its own or its backbone's."""
    own: Any = getattr(network, "backbone", network)
    return int(own.settings().get("in_channels") or own.in_channels)  # a folded U-Net's own are those inside

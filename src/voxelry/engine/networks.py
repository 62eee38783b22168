"""The networks that bundles and checkpoints may hold, by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from voxelry.core.errors import SettingError

__all__ = ["NETWORKS", "build_network", "input_channels", "network_class", "network_name"]

NETWORKS = {
    "unet": "voxelry.models.unet.UNet",
    "folded_unet": "voxelry.models.folded_unet.FoldedUNet",
    "haar_unet": "voxelry.models.haar_unet.HaarUNet",
    "masked_autoencoder": "voxelry.models.mae.MaskedAutoencoder",
    "backbone_heatmaps": "voxelry.models.backbone_heatmaps.BackboneHeatmaps",
    "mask_rcnn": "voxelry.models.mask_rcnn.MaskRCNN",
    "shape_net": "voxelry.models.shape.ShapeNet",
    "shape_flow": "voxelry.models.shape.ShapeFlow",
}


def network_class(name: str) -> type[nn.Module]:
    """The class of a network, by its name in `NETWORKS`."""
    module, _, attribute = NETWORKS[name].rpartition(".")
    found: type[nn.Module] = getattr(import_module(module), attribute)
    return found


def network_name(network: nn.Module) -> str:
    """The name of a network at hand.

    Raises:
        SettingError: it is none of `NETWORKS`.
    """
    for name in NETWORKS:
        if type(network) is network_class(name):
            return name
    raise SettingError(f"{type(network).__name__}: expected one of {', '.join(NETWORKS)}")


def build_network(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """A new network from what its `settings()` gave."""
    return network_class(name)(**settings)


def input_channels(network: nn.Module) -> int:
    """Channels of the images that a network takes, its own or its backbone's."""
    own: Any = getattr(network, "backbone", network)
    return int(own.settings().get("in_channels") or own.in_channels)  # a folded U-Net's own are those inside

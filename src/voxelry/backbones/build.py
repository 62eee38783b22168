"""Backbones from plain descriptions, which is what a bundle stores."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from voxelry.backbones.base import Backbone
from voxelry.core.errors import SettingError
from voxelry.core.registry import Registry

__all__ = ["BACKBONES", "build_backbone"]

BACKBONES: Registry[type[Backbone]] = Registry(
    "backbones",
    "backbone",
    {
        "resnet": "voxelry.backbones.resnet:ResNet",
        "vit": "voxelry.backbones.vit:ViT",
        "vitdet": "voxelry.backbones.vitdet:ViTDet",
        "hiera": "voxelry.backbones.hiera:Hiera",
        "fpn": "voxelry.backbones.fpn:FPN",
        # built on a whole network, of a higher layer, and so known by its place alone
        "unet": "voxelry.models.unet.backbone:UNetBackbone",
    },
)
"""Backbones by the name that a description or a bundle has for them."""


def build_backbone(
    description: Mapping[str, Any], *, ndim: int | None = None, in_channels: int | None = None
) -> Backbone:
    """Build a backbone from its name and settings, the inverse of `Backbone.describe`.

    Args:
        description: `{"name": ..., **settings}`; that of an "fpn" holds another under `backbone`.
        ndim, in_channels: what a description that leaves them out gets.

    Raises:
        SettingError: no or an unknown name, or settings that the class doesn't have.
    """
    settings = dict(description)
    kind = BACKBONES[settings.pop("name", "")]
    if isinstance(settings.get("backbone"), Mapping):
        settings["backbone"] = build_backbone(settings["backbone"], ndim=ndim, in_channels=in_channels)
    elif "backbone" not in settings:
        given = {"ndim": ndim, "in_channels": in_channels}
        settings = {**{key: value for key, value in given.items() if value is not None}, **settings}
    try:
        signature(kind).bind(**settings)
    except TypeError as fault:
        raise SettingError(f"backbone {kind.name}: {fault}") from fault
    return kind(**settings)

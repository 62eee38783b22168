"""Backbones from plain descriptions, which is what a bundle stores."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from voxelry.backbones.base import Backbone
from voxelry.core.errors import SettingError

__all__ = ["BACKBONES", "backbone_class", "build_backbone"]

BACKBONES = {"resnet": "ResNet", "vit": "ViT", "vitdet": "ViTDet", "hiera": "Hiera", "fpn": "FPN"}
# built on whole networks, of a higher layer, and so imported by name alone
_OF_NETWORKS = {"unet": "voxelry.models.unet_backbone.UNetBackbone"}


def backbone_class(name: str) -> type[Backbone]:
    """The class that a description's `name` stands for.

    Raises:
        SettingError: an unknown name.
    """
    if name in _OF_NETWORKS:
        module, _, attribute = _OF_NETWORKS[name].rpartition(".")
        outer: type[Backbone] = getattr(import_module(module), attribute)
        return outer
    if name not in BACKBONES:
        raise SettingError(f"backbone: expected one of {', '.join([*BACKBONES, *_OF_NETWORKS])}, got {name!r}")
    found: type[Backbone] = getattr(import_module(f"voxelry.backbones.{name}"), BACKBONES[name])
    return found


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
    kind = backbone_class(settings.pop("name", ""))
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

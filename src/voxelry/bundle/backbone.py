"""The backbone of a run, from the `backbone` part of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voxelry.backbones.base import Backbone
from voxelry.backbones.build import BACKBONES, build_backbone
from voxelry.bundle.pretrained import Pretrained
from voxelry.core.errors import ConfigError
from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.models.networks import NETWORKS

__all__ = ["configured_backbone", "pretraining_of", "resolved"]

_PRETRAINED_BY = {"unet": "pretrain", "hiera": "pretrain_mae"}
_FLAT = 1.5  # an axis with voxels so much longer than the shortest isn't halved by a stride of `auto`


def configured_backbone(config: DictConfig, sample: Sample, pretrained: Pretrained | None) -> Backbone:
    """The backbone that `config.backbone` describes, for images like this one.

    One of the kind of the pretrained network, or of that one's backbone, gets its architecture.

    Raises:
        ConfigError: none is configured.
    """
    if config.get("backbone") is None:
        raise ConfigError("backbone: expected one, such as backbone=resnet_fpn_small")
    described: Any = OmegaConf.to_container(config.backbone, resolve=True)
    if pretrained is not None:
        described = taken_over(described, pretrained, sample.ndim)
    return build_backbone(resolved(described, sample.space, int(sample.image.shape[0])))


def pretraining_of(config: DictConfig) -> str | None:
    """The experiment, without its rank, that trains the configured backbone on images without labels, if one does."""
    described = config.get("backbone") or {}
    while described.get("backbone") is not None:
        described = described["backbone"]
    return _PRETRAINED_BY.get(str(described.get("name")))


def taken_over(described: dict[str, Any], pretrained: Pretrained, ndim: int) -> dict[str, Any]:
    """A description with the architecture of the pretrained network, where they are of one kind."""
    theirs = {**pretrained.settings, "name": pretrained.kind}
    if pretrained.kind in NETWORKS:
        theirs = dict(theirs.get("backbone") or {})
    if pretrained.ndim == ndim and theirs.get("name") in BACKBONES and _names(described) == _names(theirs):
        # nothing is classified, so no head is needed
        return {key: value for key, value in theirs.items() if key != "num_classes"}
    if isinstance(described.get("backbone"), Mapping):
        return described | {"backbone": taken_over(dict(described["backbone"]), pretrained, ndim)}
    kind, ours = described.get("name"), {}
    if kind == "unet" and pretrained.kind in ("unet", "folded_unet"):
        ours = {**pretrained.settings, "finest": described.get("finest", 0)}
    elif kind == "hiera" and pretrained.kind == "masked_autoencoder":
        ours = dict(pretrained.settings["encoder"])
    return {**ours, "name": kind} if ours else described


def _names(described: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a description is of, and what is inside."""
    return described.get("name"), (described.get("backbone") or {}).get("name")


def resolved(described: dict[str, Any], space: Space, channels: int) -> dict[str, Any]:
    """A description with the rank, the channels and the strides that the images ask for.

    A stride of `auto` halves the image, but along thick slices leaves it.
    """
    if isinstance(described.get("backbone"), Mapping):
        return described | {"backbone": resolved(dict(described["backbone"]), space, channels)}
    finest = min(space.spacing)
    auto = [1 if step > _FLAT * finest else 2 for step in space.spacing]
    found = {key: auto if value == "auto" else value for key, value in described.items()}
    return found | {"ndim": space.ndim, "in_channels": channels}

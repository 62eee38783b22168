"""Networks of other projects, rebuilt as ours from their constructor arguments and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from voxelry.core.choice import check_choice

__all__ = ["SOURCES", "Source", "from_reference", "infer_case", "source_of"]


@dataclass(frozen=True)
class Source:
    """Another project, and the module that reads its weights.

    Attributes:
        module: name of a module of `voxelry.interop.weights`, or `module:object`, with
            `rebuild(case, weights, ndim) -> nn.Module` and `infer(weights) -> dict`, both for weights with or without
            a common prefix; imported when used.
        mark: regular expression for a tensor name that, of all sources from here on, only this one has.
    """

    module: str
    mark: str

    def load(self) -> Any:
        """The module, or the object of it."""
        module, _, name = self.module.partition(":")
        loaded = import_module(f"voxelry.interop.weights.{module}")
        return getattr(loaded, name) if name else loaded


SOURCES: dict[str, Source] = {
    "diffusion-xray": Source("diffusion_xray", r"(^|\.)init_conv\.weight$"),
    "fast-ddpm": Source("fast_ddpm", r"(^|\.)conv_in\.weight$"),
    "torchvision-maskrcnn": Source("torchvision_maskrcnn", r"(^|\.)rpn\.head\.cls_logits\.weight$"),
    "torchvision-resnet-fpn": Source("torchvision_resnet", r"(^|\.)layer1\.0\.conv1\.weight$"),
    "hiera": Source("hiera", r"(^|\.)blocks\.\d+\.proj\.weight$"),
    "detectron2-vitdet": Source("detectron2_vitdet", r"(^|\.)blocks\.0\.attn\.qkv\.weight$"),
    "sam3d-ss-encoder": Source("sam3d.structure_vae:ENCODER", r"(^|\.)blocks\.\d+\.conv\.weight$"),
    "sam3d-ss-decoder": Source("sam3d.structure_vae:DECODER", r"(^|\.)middle_block\.0\.conv1\.weight$"),
    "sam3d-ss-flow": Source("sam3d.structure_flow:FLOW", r"(^|\.)latent_mapping\.shape\.pos_emb$"),
    "sam3d-slat-flow": Source("sam3d.latent_flow:FLOW", r"(^|\.)input_blocks\.\d+\.conv1\.conv\.weight$"),
    "sam3d-mesh-decoder": Source("sam3d.mesh_decoder:DECODER", r"(^|\.)upsample\.0\.out_layers\.0\.conv\.weight$"),
    "sam3d-point-patch-embed": Source("sam3d.condition:POINTS", r"(^|\.)point_proj\.weight$"),
    "sam3d-embedder-fuser": Source("sam3d.condition:FUSER", r"(^|\.)projection_nets\.0\.1\.w1\.weight$"),
}


def from_reference(
    source: str, case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None
) -> nn.Module:
    """Rebuild another project's network, in eval mode, with our calling convention.

    Args:
        source: "diffusion-xray" (Di Via et al. 2025, `Unet`), "fast-ddpm" (Jiang et al. 2025, `Model`),
            "torchvision-resnet-fpn" (`ResNet` with or without `FeaturePyramidNetwork`), "detectron2-vitdet"
            (`ViT` with or without `SimpleFeaturePyramid`), "hiera" (Ryali et al. 2023, `Hiera`),
            "torchvision-maskrcnn" (`MaskRCNN`), or a module of SAM 3D Objects: "sam3d-ss-encoder", "sam3d-ss-decoder",
            "sam3d-ss-flow", "sam3d-slat-flow", "sam3d-mesh-decoder", "sam3d-point-patch-embed",
            "sam3d-embedder-fuser".
        case: the original's constructor arguments; a flat dict, for Fast-DDPM also its nested configuration, for
            SAM 3D Objects also a dict with the arguments under `args`. Arguments left out take what the weights show,
            else the original's default.
        weights: the original's state dict, with or without a common prefix such as `module.`.
        ndim: rank of the result; None for that of the weights, 3 lifts 2-D weights (`models.inflate`).

    Returns:
        A `UNet` (`forward(x, time, condition)` with the self-conditioning estimate as `condition`), a
        `Backbone` (`forward(x)` to a dict of levels), a `MaskRCNN`, or a network of `models.sam3d`, always 3-D.

    Raises:
        SettingError: an unknown source.
        CheckpointError: weights that are not this architecture's; names the first tensors at fault.
    """
    return find_source(source).load().rebuild(case, weights, ndim)


def infer_case(source: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the original, as far as its tensors show them.

    What tensors can't show is assumed and documented by the source's `infer`, such as the number of groups
    and the split of attention channels into heads.
    """
    return find_source(source).load().infer(weights)


def source_of(names: Iterable[str]) -> str | None:
    """The source whose tensors have these names, or None."""
    present = list(names)
    for name, source in SOURCES.items():
        if any(re.search(source.mark, key) for key in present):
            return name
    return None


def find_source(name: str) -> Source:
    """The source of that name.

    Raises:
        SettingError: an unknown source.
    """
    check_choice("source", name, SOURCES)
    return SOURCES[name]

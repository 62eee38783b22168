"""`PointPatchEmbed` and `EmbedderFuser`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor, nn

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.sam3d.names import Names
from voxelry.interop.weights.sam3d.part import Kernel, Part, arguments
from voxelry.models.sam3d.condition import ConditionFuser, PointEmbedder, TokenEmbedder

__all__ = ["FUSER", "POINTS", "POINT_NAMES", "point_settings"]

POINT_STEM = "point_proj.weight"
POINT_NAMES = [
    ("point_proj", "points"),
    ("invalid_xyz_token", "unknown"),
    ("dropped_xyz_token", "dropped"),
    ("cls_token", "token"),
    ("pos_embed", "patch_positions"),
    ("pos_embed_window", "pixel_positions"),
    ("blocks.0.attn.proj", "block.attention.out"),
    ("blocks.0.attn", "block.attention"),
    ("blocks.0.mlp.fc1", "block.mlp.0"),
    ("blocks.0.mlp.fc2", "block.mlp.2"),
    ("blocks.0.norm1", "block.norm1"),
    ("blocks.0.norm2", "block.norm2"),
]


def point_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `PointEmbedder`; without a case the remap is that of the published checkpoints, "linear"."""
    given = arguments(case)
    side = weights["pos_embed"].shape[-1]
    patch = isqrt(weights["pos_embed_window"].shape[1] - 1)
    channels = weights[POINT_STEM].shape[0]
    return {
        "image_size": given.get("input_size", side * patch),
        "patch_size": patch,
        "channels": channels,
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / channels,
        "remap": given.get("remap_output", "linear"),
        "dropout": given.get("dropout_prob", 0.0),
    }


POINTS = Part("sam3d-point-patch-embed", POINT_STEM, PointEmbedder, Names(POINT_NAMES), point_settings)

FUSER_SOURCE = "sam3d-embedder-fuser"
FUSER_NAMES = Names(
    [
        ("module_list", "embedders"),
        ("projection_nets.#.0", "projections.#.norm"),
        ("projection_nets.#.1.w1", "projections.#.gate"),
        ("projection_nets.#.1.w2", "projections.#.out"),
        ("projection_nets.#.1.w3", "projections.#.value"),
        ("compression_projector.0", "compression.norm"),
        ("compression_projector.1.w1", "compression.gate"),
        ("compression_projector.1.w2", "compression.out"),
        ("compression_projector.1.w3", "compression.value"),
        ("idx_emb", "groups"),
    ]
)


def fuser_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `make_fuser`.

    Raises:
        CheckpointError: a case that doesn't say what each embedder reads, which no tensor shows.
    """
    embedders = case.get("embedders")
    if not embedders:
        raise CheckpointError(f"{FUSER_SOURCE}: expected the case to have embedders, each with channels and inputs")
    given = arguments(case)
    return {
        "embedders": embedders,
        "projection_ratio": given.get("projection_net_hidden_dim_multiplier", 4.0),
        "normed": given.get("projection_pre_norm", True),
        "compression_ratio": given.get("compression_projection_multiplier", 0),
        "group_vectors": weights["idx_emb"].shape[0],
    }


def make_fuser(*, embedders: list[Mapping[str, Any]], **settings: Any) -> nn.Module:
    """A `ConditionFuser` of one linear layer for each embedder."""
    made = [TokenEmbedder(one["channels"], one["embed_dim"]) for one in embedders]
    return ConditionFuser(made, [one["inputs"] for one in embedders], **settings)


def group_kernel(name: str, tensor: Tensor) -> Kernel | None:
    """The learned vectors of groups, which some files have with an axis of one."""
    if name != "groups":
        return None
    return Kernel(lambda each: each.flatten(0, -2), lambda each: each)


FUSER = Part(FUSER_SOURCE, "idx_emb", make_fuser, FUSER_NAMES, fuser_settings, group_kernel)

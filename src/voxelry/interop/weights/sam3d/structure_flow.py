"""`SparseStructureFlowTdfyWrapper`, the multi-latent transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.sam3d.names import Names
from voxelry.interop.weights.sam3d.part import Part, arguments, count
from voxelry.models.sam3d.structure_flow import SHAPE, StructureFlow

__all__ = ["BLOCK_NAMES", "FLOW", "block_settings"]

STEM = "latent_mapping.shape.input_layer.weight"

BLOCK_NAMES = [
    ("self_attn.to_qkv", "attention.qkv"),
    ("self_attn.to_out", "attention.out"),
    ("self_attn.q_rms_norm", "attention.q_norm"),
    ("self_attn.k_rms_norm", "attention.k_norm"),
    ("norm2", "cross_norm"),
    ("cross_attn", "cross"),
    ("to_q", "q"),
    ("to_kv", "kv"),
    ("to_out", "out"),
    ("q_rms_norm", "q_norm"),
    ("k_rms_norm", "k_norm"),
    ("t_embedder.mlp.0", "time.linear1"),
    ("t_embedder.mlp.2", "time.linear2"),
    ("d_embedder.mlp.0", "step.linear1"),
    ("d_embedder.mlp.2", "step.linear2"),
    ("mlp.#", "layers.#"),
    ("adaLN_modulation.1", "modulation.linear"),
]
NAMES = Names(
    [
        *BLOCK_NAMES,
        ("latent_mapping", "latents"),
        ("input_layer", "enter"),
        ("out_layer", "leave"),
        ("pos_emb", "positions"),
    ]
)


def block_settings(
    source: str, given: Mapping[str, Any], weights: Mapping[str, Tensor], kv: str, hidden: str
) -> dict[str, Any]:
    """What both flows' transformers say alike.

    Args:
        source: for messages.
        given: the original's arguments.
        weights: its tensors.
        kv: name of the weight of a block's keys and values of the condition.
        hidden: name of the weight of a block's first linear layer.

    Raises:
        CheckpointError: an argument with which the original itself fails, or that no published network has.
    """
    if given.get("share_mod"):
        raise CheckpointError(f"{source}: share_mod=true fails in the original, too; expected a network without it")
    if given.get("pe_mode", "ape") != "ape":
        raise CheckpointError(f"{source}: pe_mode: expected ape, got {given['pe_mode']}")
    double, condition_channels = weights[kv].shape
    channels = double // 2
    width = weights[hidden].shape[0]
    gamma = [tensor for name, tensor in weights.items() if name.endswith("gamma")]
    heads = given.get("num_heads") or (
        len(gamma[0]) if gamma else max(1, channels // given.get("num_head_channels", 64))
    )
    return {
        "channels": channels,
        "condition_channels": condition_channels,
        "depth": count(weights, "blocks"),
        "heads": heads,
        "mlp_ratio": width / channels,
        "normed": any(".self_attn.q_rms_norm." in name for name in weights),
        "normed_cross": any(".cross_attn." in name and "q_rms_norm" in name for name in weights),
    }


def infer_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `StructureFlow`.

    Raises:
        CheckpointError: positions of the shape that are no cube, or latents in patches.
    """
    source, given = "sam3d-ss-flow", arguments(case)
    latents = case.get("latents", {})
    if latents.get(SHAPE, {}).get("patch_size", 1) != 1:
        raise CheckpointError(f"{source}: latents.shape.patch_size: expected 1, got {latents[SHAPE]['patch_size']}")
    tokens = len(weights["latent_mapping.shape.pos_emb"])
    grid = round(tokens ** (1 / 3))
    if grid**3 != tokens:
        raise CheckpointError(f"{source}: latent_mapping.shape.pos_emb: expected a cube of positions, got {tokens}")
    pose = {
        name.split(".")[1]: tensor.shape[1]
        for name, tensor in weights.items()
        if name.startswith("latent_mapping.") and name.endswith(".input_layer.weight") and f".{SHAPE}." not in name
    }
    return {
        **block_settings(
            source, given, weights, "blocks.0.cross_attn.shape.to_kv.weight", "blocks.0.mlp.shape.mlp.0.weight"
        ),
        "grid": grid,
        "latent_channels": weights[STEM].shape[1],
        "pose": pose,
        "streams": streams(case, given, weights, pose),
        "include_pose": bool(pose),
        "shortcut": "d_embedder.mlp.0.weight" in weights,
    }


def streams(
    case: Mapping[str, Any], given: Mapping[str, Any], weights: Mapping[str, Tensor], pose: Mapping[str, int]
) -> dict[str, list[str]]:
    """Streams and their latents: as told, else all that have no layers of their own go with the one that has."""
    told = case.get("latent_share_transformer", given.get("latent_share_transformer"))
    if told is not None:
        return {stream: list(names) for stream, names in told.items()} if pose else {}
    own = [name for name in pose if f"blocks.0.mlp.{name}.mlp.0.weight" in weights]
    usual = [name for name in StructureFlow.Settings().pose if name in pose]
    return {own[0]: usual} if len(own) == 1 and len(pose) > 1 else {}


def without_pose(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of the shape and of what all streams share, where the case says `include_pose: false`.

    The original takes this argument and goes on with the pose.
    """
    if {**case, **arguments(case)}.get("include_pose", True):
        return weights
    latents = {name.split(".")[1] for name in weights if name.startswith("latent_mapping.")}
    return {name: each for name, each in weights.items() if not (latents - {SHAPE}) & set(name.split("."))}


FLOW = Part("sam3d-ss-flow", STEM, StructureFlow, NAMES, infer_settings, select=without_pose)

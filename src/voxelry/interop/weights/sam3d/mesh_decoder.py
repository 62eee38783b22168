"""`SLatMeshDecoder`, from structured latents to a surface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.sam3d.kernels import decoder_kernel
from voxelry.interop.weights.sam3d.names import Names
from voxelry.interop.weights.sam3d.part import Part, arguments, count
from voxelry.models.sam3d.mesh_decoder import MeshDecoder
from voxelry.models.sam3d.surface import surface_channels

__all__ = ["DECODER"]

SOURCE = "sam3d-mesh-decoder"
STEM = "input_layer.weight"
NAMES = Names(
    [
        ("input_layer", "enter"),
        ("out_layer", "leave"),
        ("upsample", "up"),
        ("act_layers.0", "norm1"),
        ("out_layers.0.conv", "conv1"),
        ("out_layers.1", "norm2"),
        ("out_layers.3.conv", "conv2"),
        ("skip_connection.conv", "skip"),
        ("attn", "attention"),
        ("to_qkv", "qkv"),
        ("to_out", "out"),
        ("q_rms_norm", "q_norm"),
        ("k_rms_norm", "k_norm"),
        ("mlp.#", "layers.#"),
    ]
)


def infer_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `MeshDecoder`.

    Raises:
        CheckpointError: attention of a kind that no published decoder has.
    """
    given = arguments(case)
    mode = given.get("attn_mode", "swin")
    if mode not in ("swin", "full"):
        raise CheckpointError(f"{SOURCE}: attn_mode: expected swin or full, got {mode}")
    if given.get("pe_mode", "ape") != "ape":
        raise CheckpointError(f"{SOURCE}: pe_mode: expected ape, got {given['pe_mode']}")
    channels, latents = weights[STEM].shape
    gamma = weights.get("blocks.0.attn.q_rms_norm.gamma")
    heads = given.get("num_heads") or (
        max(1, channels // given.get("num_head_channels", 64)) if gamma is None else len(gamma)
    )
    levels = range(count(weights, "upsample"))
    return {
        "grid": given.get("resolution", 64),
        "latent_channels": latents,
        "channels": channels,
        "depth": count(weights, "blocks"),
        "heads": heads,
        "mlp_ratio": len(weights["blocks.0.mlp.mlp.0.weight"]) / channels,
        "window": given.get("window_size", 8) if mode == "swin" else None,
        "normed": gamma is not None,
        "widths": [len(weights[f"upsample.{level}.out_layers.1.weight"]) for level in levels],
        "groups": given.get("num_groups", 32),
        "colours": len(weights["out_layer.weight"]) == surface_channels(True),
    }


DECODER = Part(SOURCE, STEM, MeshDecoder, NAMES, infer_settings, decoder_kernel)

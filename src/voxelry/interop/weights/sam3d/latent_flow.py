"""`SLatFlowModel`, the flow of structured latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from voxelry.interop.weights.sam3d.kernels import sparse_kernel
from voxelry.interop.weights.sam3d.names import Names
from voxelry.interop.weights.sam3d.part import Part, arguments, count
from voxelry.interop.weights.sam3d.structure_flow import BLOCK_NAMES, block_settings
from voxelry.models.sam3d.latent_flow import LatentFlow

__all__ = ["FLOW"]

SOURCE = "sam3d-slat-flow"
STEM = "input_layer.weight"

NAMES = Names(
    [
        *BLOCK_NAMES,
        ("input_layer", "enter"),
        ("out_layer", "leave"),
        ("input_blocks", "down"),
        ("out_blocks", "up"),
        ("conv1.conv", "conv1"),
        ("conv2.conv", "conv2"),
        ("emb_layers.1", "embedding"),
        ("skip_connection", "skip"),
    ]
)


def infer_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `LatentFlow`."""
    given = arguments(case)
    shared = block_settings(SOURCE, given, weights, "blocks.0.cross_attn.to_kv.weight", "blocks.0.mlp.mlp.0.weight")
    steps = [weights[f"input_blocks.{index}.norm1.weight"].shape[0] for index in range(count(weights, "input_blocks"))]
    widths = list(dict.fromkeys(steps)) or None
    if given.get("io_block_channels"):
        widths = list(given["io_block_channels"])
    first = "out_blocks.0.norm1.weight"
    return {
        **shared,
        "latent_channels": weights[STEM].shape[1],
        "widths": widths,
        "blocks": given.get("num_io_res_blocks") or (len(steps) // len(widths) if widths else 2),
        "skips": first not in weights or weights[first].shape[0] == 2 * shared["channels"],
        "shortcut": "d_embedder.mlp.0.weight" in weights,
    }


FLOW = Part(SOURCE, STEM, LatentFlow, NAMES, infer_settings, sparse_kernel)

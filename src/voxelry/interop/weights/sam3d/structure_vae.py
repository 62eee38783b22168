"""`SparseStructureEncoder` and `SparseStructureDecoder`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from voxelry.interop.weights.sam3d.names import Names
from voxelry.interop.weights.sam3d.part import Part, arguments, count
from voxelry.models.sam3d.structure_vae import StructureDecoder, StructureEncoder

__all__ = ["DECODER", "ENCODER"]

STEM = "input_layer.weight"
NAMES = Names([("input_layer", "stem"), ("blocks", "levels"), ("middle_block", "middle"), ("out_layer", "leave")])


def shared(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What encoder and decoder say alike; levels in the order of the file."""
    given = arguments(case)
    levels: list[list[int]] = [[]]
    for index in range(count(weights, "blocks")):
        if f"blocks.{index}.norm1.weight" in weights:
            levels[-1].append(len(weights[f"blocks.{index}.norm1.weight"]))
        else:
            levels.append([])
    return {
        "latent_channels": given.get("latent_channels", 8),
        "widths": given.get("channels") or [level[0] for level in levels],
        "blocks": given.get("num_res_blocks", len(levels[0])),
        "middle_blocks": count(weights, "middle_block"),
        "norm": given.get("norm_type", "layer"),
    }


def encoder_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `StructureEncoder`."""
    latents = weights["out_layer.2.weight"].shape[0] // 2
    return {**shared(case, weights), "channels": weights[STEM].shape[1], "latent_channels": latents}


def decoder_settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of `StructureDecoder`; ours are of the finest level first."""
    found = shared(case, weights)
    return {
        **found,
        "widths": list(found["widths"])[::-1],
        "channels": weights["out_layer.2.weight"].shape[0],
        "latent_channels": weights[STEM].shape[1],
    }


ENCODER = Part("sam3d-ss-encoder", STEM, StructureEncoder, NAMES, encoder_settings)
DECODER = Part("sam3d-ss-decoder", STEM, StructureDecoder, NAMES, decoder_settings)

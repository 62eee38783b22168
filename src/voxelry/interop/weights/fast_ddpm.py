"""The U-Net of Fast-DDPM (Jiang et al. 2025), which is that of Ho et al. 2020 as ported by DDIM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.state import build, strip_prefix
from voxelry.models.unet import UNet

__all__ = ["STEM", "convert", "flat", "infer", "rank", "rebuild", "settings"]

STEM = "conv_in.weight"

RENAMES = (
    (r"^conv_in\.", "stem."),
    (r"^conv_out\.", "head."),
    (r"^norm_out\.", "final.norm."),
    (r"^temb\.dense\.0\.", "time.linear1."),
    (r"^temb\.dense\.1\.", "time.linear2."),
    (r"^mid\.block_([12])\.", r"middle\1."),
    (r"^mid\.attn_1\.", "middle_attention."),
    (r"\.block\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.(down|up)sample\.conv\.", ".resample.conv."),
    (r"\.temb_proj\.", ".time."),
    (r"\.(nin|conv)_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
)


def rebuild(case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None) -> nn.Module:
    """A `UNet` with these weights; see `voxelry.interop.from_reference`."""
    weights = strip_prefix(weights, STEM)
    chosen = settings({**infer(weights), **flat(case)}, weights)
    state = convert(weights, len(chosen["multipliers"]))
    return build("fast-ddpm", UNet, chosen, state, rank=rank(weights), ndim=ndim)


def rank(weights: Mapping[str, Tensor]) -> int:
    """Number of spatial axes of the weights."""
    return weights[STEM].ndim - 2


def flat(case: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a flat dict, or from the `model` and `data` parts of a configuration."""
    nested = {**case.get("model", {})} if isinstance(case.get("model"), Mapping) else {}
    if isinstance(case.get("data"), Mapping) and "image_size" in case["data"]:
        nested["image_size"] = case["data"]["image_size"]
    given = {**{key: value for key, value in case.items() if key not in ("model", "data")}, **nested}
    if not {"image_size", "attn_resolutions"} <= given.keys():  # one without the other says nothing
        given.pop("image_size", None)
        given.pop("attn_resolutions", None)
    return given


def infer(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments as far as the tensors show them.

    `image_size` is not shown; 256 is assumed, and `attn_resolutions` follow from it, so that attention is
    at the levels where the weights have it.

    Raises:
        CheckpointError: tensors of this architecture are missing.
    """
    weights = strip_prefix(weights, STEM)
    try:
        width = weights["temb.dense.0.weight"].shape[1]
        levels = 1 + max(int(key.split(".")[1]) for key in weights if re.match(r"down\.\d+\.block\.", key))
        mults = [weights[f"down.{level}.block.0.conv1.weight"].shape[0] // width for level in range(levels)]
        outputs = weights["conv_out.weight"].shape[0]
    except (KeyError, ValueError) as fault:
        raise CheckpointError(f"fast-ddpm: expected tensors of its U-Net: {fault.args[0]} is missing") from fault
    return {
        "in_channels": weights[STEM].shape[1],
        "out_ch": outputs,
        "ch": width,
        "ch_mult": mults,
        "num_res_blocks": len({key.split(".")[3] for key in weights if key.startswith("down.0.block.")}),
        "attn_resolutions": [256 >> level for level in range(levels) if f"down.{level}.attn.0.q.weight" in weights],
        "dropout": 0.0,
        "resamp_with_conv": levels == 1 or "down.0.downsample.conv.weight" in weights,
        "image_size": 256,
    }


def settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of our `UNet`, without `ndim`.

    `type` (sg, sr) says what the input channels hold and changes nothing in the network.
    """
    mults = list(case["ch_mult"])
    sizes = [case["image_size"] >> level for level in range(len(mults))]
    wide = any(".conv_shortcut." in key for key in weights)
    return {
        "in_channels": case["in_channels"],
        "out_channels": case["out_ch"],
        "width": case["ch"],
        "multipliers": mults,
        "groups": 32,
        "eps": 1e-6,
        "block": "pre_norm",
        "attention": ["full" if size in case["attn_resolutions"] else "none" for size in sizes],
        "middle_attention": "full",
        "heads": 1,
        "head_dim": None,
        "attention_groups": None,
        "attention_bias": True,
        "down": "strided" if case["resamp_with_conv"] else "average",
        "up": "nearest_conv" if case["resamp_with_conv"] else "nearest",
        "wiring": "dense",
        "blocks_per_level": case["num_res_blocks"],
        "dropout": float(case["dropout"]),
        "time_activation": "silu",
        "stem_kernel": 3,
        "head_kernel": 3,
        "shortcut_kernel": 3 if wide else 1,
    }


def convert(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """State dict with our names: one tensor for queries, keys and values, decoder levels coarsest first."""
    renamed = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^up\.(\d+)\.", lambda match: f"up.{levels - 1 - int(match[1])}.", name)
        renamed[name] = value
    renamed.pop("logvar", None)  # of the type "bayesian": no part of the network's output
    converted = {}
    for name, value in renamed.items():
        head, _, tail = name.rpartition(".")
        stem, _, last = head.rpartition(".")
        if last == "q" and "attention" in stem:
            converted[f"{stem}.qkv.{tail}"] = torch.cat([renamed[f"{stem}.{part}.{tail}"] for part in "qkv"])
        elif not (last in ("k", "v") and "attention" in stem):
            converted[name] = value
    return converted

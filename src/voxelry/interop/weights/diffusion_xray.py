"""The pretraining U-Net of DiffusionXray-FewShot-LandmarkDetection (Di Via et al. 2025), 2-D and 3-D.

Names in its configuration mislead: `res_blocks` is the number of normalisation groups, `attn_res` the
channels of an attention head, `num_head_channels` the number of heads; here the constructor's own
names are used (`resnet_block_groups`, `att_res`, `att_heads`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.state import build, strip_prefix
from voxelry.models.unet import UNet

__all__ = ["STEM", "convert", "flat", "infer", "rank", "rebuild", "settings"]

STEM = "init_conv.weight"

DEFAULT_GROUPS = 4
DEFAULT_HEADS = 4

# Original name to ours, applied in order to every key.
RENAMES = (
    (r"^init_conv\.", "stem."),
    (r"^final_conv\.", "head."),
    (r"^final_res_block\.", "final."),
    (r"^time_mlp\.1\.", "time.linear1."),
    (r"^time_mlp\.3\.", "time.linear2."),
    (r"^mid_block([12])\.", r"middle\1."),
    (r"^mid_attn\.", "middle_attention."),
    (r"^(down|up)s\.(\d+)\.([01])\.", r"\1.\2.blocks.\3."),
    (r"^(down|up)s\.(\d+)\.2\.", r"\1.\2.attentions.1."),
    (r"^(down|up)s\.(\d+)\.3\.1\.", r"\1.\2.resample.conv."),
    (r"^(down|up)s\.(\d+)\.3\.", r"\1.\2.resample."),
    (r"\.block([12])\.proj\.", r".conv\1."),
    (r"\.block([12])\.norm\.", r".norm\1."),
    (r"\.mlp\.1\.", ".time."),
    (r"\.res_conv\.", ".shortcut."),
    (r"\.fn\.norm\.", ".norm."),
    (r"\.fn\.fn\.to_qkv\.", ".qkv."),
    (r"\.fn\.fn\.to_out\.0\.", ".out."),
    (r"\.fn\.fn\.to_out\.1\.", ".out_norm."),
    (r"\.fn\.fn\.to_out\.", ".out."),
)


def rebuild(case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None) -> nn.Module:
    """A `UNet` with these weights; see `voxelry.interop.from_reference`."""
    weights = strip_prefix(weights, STEM)
    chosen = settings({**infer(weights), **flat(case)}, weights)
    state = convert(weights, len(chosen["multipliers"]))
    return build("diffusion-xray", UNet, chosen, state, rank=rank(weights), ndim=ndim)


def rank(weights: Mapping[str, Tensor]) -> int:
    """Number of spatial axes of the weights."""
    return weights[STEM].ndim - 2


def flat(case: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that were given."""
    return {key: value for key, value in case.items() if value is not None}


def infer(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments as far as the tensors show them.

    One input channel more than outputs, or two inputs of a network with other outputs, is read as
    self-conditioning. Groups are taken to be 4 and heads 4 (the original's defaults), which tensors don't
    show.

    Raises:
        CheckpointError: tensors of this architecture are missing.
    """
    weights = strip_prefix(weights, STEM)
    try:
        dim = weights["time_mlp.1.weight"].shape[1]
        inputs, outputs = weights[STEM].shape[1], weights["final_conv.weight"].shape[0]
        inner = weights["mid_attn.fn.fn.to_out.weight"].shape[1]
        levels = len({key.split(".")[1] for key in weights if key.startswith("downs.")})
        mults = [weights[f"downs.{level}.0.block1.proj.weight"].shape[0] // dim for level in range(1, levels)]
        mults.append(weights["mid_block1.block1.proj.weight"].shape[0] // dim)
    except KeyError as fault:
        raise CheckpointError(f"diffusion-xray: expected a tensor named {fault.args[0]}, found none") from fault
    conditioned = inputs == outputs + 1 or (inputs == 2 and outputs != 2)
    return {
        "dim": dim,
        "dim_mults": mults,
        "channels": inputs - conditioned,
        "out_dim": outputs,
        "self_condition": conditioned,
        "resnet_block_groups": DEFAULT_GROUPS,
        "att_heads": DEFAULT_HEADS,
        "att_res": inner // DEFAULT_HEADS,
        "is_3d": rank(weights) == 3,
    }


def settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of our `UNet`, without `ndim`.

    The original adds one input channel for the estimate whatever the channels; more than that one are
    possible here only for weights that have them.
    """
    conditioned = bool(case["self_condition"])
    extra = weights[STEM].shape[1] - case["channels"]
    return {
        "in_channels": case["channels"],
        "out_channels": case["out_dim"],
        "width": case["dim"],
        "multipliers": list(case["dim_mults"]),
        "self_condition": conditioned,
        "condition_channels": max(extra, 1) if conditioned else None,
        "groups": case["resnet_block_groups"],
        "heads": case["att_heads"],
        "head_dim": case["att_res"],
    }


def convert(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """State dict with our names; the 1×1 convolution after space-to-depth becomes a 2-wide strided one."""
    converted = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if re.match(r"down\.\d+\.resample\.conv\.weight$", name):
            # channels of the rearranged input run (channel, plane, row, column), slowest first
            sides = [2] * (value.ndim - 2)
            value = value.reshape(value.shape[0], -1, *sides)
        converted[name] = value
    return converted

"""Hiera as published (Ryali et al. 2023, facebookresearch/hiera), for images and videos."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.backbones.hiera import Hiera
from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.state import build, check_rank, strip_prefix
from voxelry.models.mae import MaskedAutoencoder

__all__ = ["STEM", "convert", "infer", "rebuild", "rebuild_autoencoder", "settings"]

STEM = "patch_embed.proj.weight"

# constructor arguments → ours
RENAMES = {
    "in_chans": "in_channels",
    "num_heads": "heads",
    "mask_unit_attn": "mask_unit_attention",
    "drop_path_rate": "drop_path",
}
PER_AXIS = ("input_size", "q_stride", "mask_unit_size", "patch_kernel", "patch_stride", "patch_padding")
DECODER = r"^(encoder_norm|mask_token|decoder_\w+|multi_scale_fusion_heads)\b"
# what no tensor shows: the original's defaults, and for videos what its published networks have
DEFAULTS: dict[int, dict[str, Any]] = {
    2: {"q_stride": [2, 2], "mask_unit_size": [8, 8], "patch_stride": [4, 4], "patch_padding": [3, 3]},
    3: {"q_stride": [1, 2, 2], "mask_unit_size": [1, 8, 8], "patch_stride": [2, 4, 4], "patch_padding": [1, 3, 3]},
}
ATTENTION = [True, True, False, False]
VIDEO_ATTENTION = [True, False, False, False]
HEADS = {96: 1, 112: 2, 144: 2, 256: 4}


def rebuild(case: Mapping[str, Any], weights: Mapping[str, Any], ndim: int | None = None) -> nn.Module:
    """A `Hiera` with these weights; see `voxelry.interop.from_reference`.

    Takes a published file's content too, `{"model_state": {...}}`. The decoder of a masked autoencoder is left out
    (`rebuild_autoencoder` keeps it). `logits(x)` answers what the original's forward pass does: in eval mode the
    softmax of its logits.

    2-D weights lift to 3-D: what the case says per axis is repeated for the new, first axis unless it has three values
    already; kernels read their middle plane; positions get a table of zeros for the new axis.
    """
    state = unpack(weights)
    rank = state[STEM].ndim - 2
    check_rank("hiera", rank, ndim)
    full = complete(case, state)
    lifts = (ndim or rank) > rank
    chosen = settings(lift(full, rank) if lifts else full)
    state = convert(state)
    if lifts:
        if "pos_embed" not in state:
            raise CheckpointError("hiera: separate positions of 2-D weights can't be lifted")
        state["pos_embed_spatial"] = state.pop("pos_embed")
        with torch.device("meta"):
            depth = Hiera(ndim=rank + 1, **chosen).grid[0]
        state["pos_embed_temporal"] = torch.zeros(1, depth, state["pos_embed_spatial"].shape[-1])
    return build("hiera", Hiera, chosen, state, rank=rank, ndim=ndim)


def rebuild_autoencoder(case: Mapping[str, Any], weights: Mapping[str, Any]) -> nn.Module:
    """A `MaskedAutoencoder` from the original's `MaskedAutoencoderHiera`, at the rank of its weights.

    Raises:
        CheckpointError: no decoder among the weights, or one that predicts a video's frames apart.
    """
    state = unpack(weights)
    if "decoder_embed.weight" not in state:
        raise CheckpointError("hiera: expected a masked autoencoder's weights, with decoder_embed.weight")
    rank = state[STEM].ndim - 2
    encoder = settings(complete(case, state))
    channels = encoder.pop("in_channels")
    chosen = {
        "in_channels": channels,
        "encoder": {"name": "hiera", **encoder, "num_classes": None, "head_activation": None},
        "decoder_dim": state["decoder_embed.weight"].shape[0],
        "decoder_depth": count(state, r"^decoder_blocks\.(\d+)\."),
        "decoder_heads": int(case.get("decoder_num_heads", 16)),
    }
    own = {
        name if re.match(DECODER, name) else f"encoder.{name}": value
        for name, value in state.items()
        if not name.startswith(("norm.", "head."))
    }
    return build("hiera", MaskedAutoencoder, chosen, own, rank=rank, ndim=None)


def unpack(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The original's tensors under its own names.

    Raises:
        CheckpointError: tensors of another architecture.
    """
    state = strip_prefix(weights.get("model_state", weights), STEM)
    if state[STEM].ndim - 2 not in DEFAULTS or "blocks.0.mlp.fc1.weight" not in state:
        raise CheckpointError(f"hiera: expected {STEM} of rank 2 or 3 and blocks.0.mlp.fc1.weight")
    return state


def complete(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """All constructor arguments: those given, else what the tensors show, else the original's defaults."""
    rank = weights[STEM].ndim - 2
    # published networks of videos were built with arguments of their own
    attention = VIDEO_ATTENTION if rank > 2 and not case else ATTENTION
    full = {**DEFAULTS[rank], "mask_unit_attn": attention, **infer(weights), **case}
    if "input_size" not in case:
        assumed = DEFAULTS[rank]["patch_stride"]
        sizes = zip(full["input_size"], assumed, full["patch_stride"], strict=True)
        full["input_size"] = [size // usual * stride for size, usual, stride in sizes]
    return full


def infer(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that the tensors show.

    Assumed: the published networks' heads for their widths, their strides, pooling at every stage up to the third, and
    an image as high as wide (and as deep, where positions are one table).
    """
    weights = unpack(weights)
    stem = weights[STEM]
    rank = stem.ndim - 2
    starts = [0, *sorted(int(name.split(".")[1]) for name in weights if re.match(r"blocks\.\d+\.proj\.weight$", name))]
    depth = count(weights, r"^blocks\.(\d+)\.")
    stages = [end - start for start, end in itertools.pairwise([*starts, depth])]
    first = weights["blocks.0.attn.proj.weight"].shape[0]
    found: dict[str, Any] = {
        "in_chans": stem.shape[1],
        "embed_dim": stem.shape[0],
        "num_heads": HEADS.get(stem.shape[0], 1),
        "num_classes": weights["head.projection.weight"].shape[0] if "head.projection.weight" in weights else None,
        "stages": stages,
        "q_pool": min(3, len(stages) - 1),
        "patch_kernel": list(stem.shape[2:]),
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / first,
        "sep_pos_embed": "pos_embed" not in weights,
    }
    if len(starts) > 1:
        found["dim_mul"] = weights[f"blocks.{starts[1]}.attn.proj.weight"].shape[0] / first
    strides = DEFAULTS[rank]["patch_stride"]
    if "pos_embed" in weights:
        side = round(weights["pos_embed"].shape[1] ** (1 / rank))
        tokens = [side] * rank
    else:
        side = math.isqrt(weights["pos_embed_spatial"].shape[1])
        tokens = [weights["pos_embed_temporal"].shape[1], *[side] * (rank - 1)]
    return {**found, "input_size": [count * stride for count, stride in zip(tokens, strides, strict=True)]}


def settings(case: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `Hiera` from the original's complete arguments; `mask_spatial_shape` follows from them."""
    known = {RENAMES.get(name, name): value for name, value in case.items()}
    for name in ("mask_spatial_shape", *(name for name in known if name.startswith("decoder_"))):
        known.pop(name, None)
    stages = known["stages"]
    whole = [stride ** (len(stages) - 1) for stride in known["q_stride"]]
    if known.get("num_classes") is not None:
        known["head_activation"] = "softmax"
    return {**known, "unit_order": "boxes" if list(known["mask_unit_size"]) == whole else "strided"}


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's tensors under our names, which are its own, without a decoder and an unused normalisation."""
    kept = {name: value for name, value in weights.items() if not re.match(DECODER, name)}
    if "head.projection.weight" not in kept:
        kept = {name: value for name, value in kept.items() if not name.startswith("norm.")}
    return kept


def lift(case: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Arguments of a 2-D network for one axis more, which comes first and is like the second."""
    lifted = dict(case)
    for name in PER_AXIS:
        values = list(lifted[name])
        lifted[name] = [values[0], *values] if len(values) == rank else values
    return {**lifted, "sep_pos_embed": True}


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered modules match."""
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))

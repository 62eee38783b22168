"""detectron2's `ViT` with or without `SimpleFeaturePyramid`, as our backbones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt, log2
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.backbones.vit import ViT, level_name
from voxelry.backbones.vitdet import ViTDet
from voxelry.core.errors import CheckpointError
from voxelry.core.rank import per_axis
from voxelry.interop.weights.state import build, check_rank, strip_prefix

__all__ = ["convert", "infer", "rebuild", "settings", "standard_names"]

NAME = "detectron2-vitdet"
STEM = "patch_embed.proj.weight"
AXES = ("d", "h", "w")

RENAMES = (
    (r"^patch_embed\.proj\.", "patches."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)


def rebuild(case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None) -> nn.Module:
    """A `ViTDet`, or a `ViT` where the weights have no pyramid, with these weights.

    Args:
        case: constructor arguments of `ViT`, those of `SimpleFeaturePyramid` under `pyramid`; what is left out
            is read from the weights.
        weights: the original's; the `net.` before the transformer may be missing, and a class token and heads of a
            pretraining are left out.
        ndim: rank of the result; 3 lifts 2-D weights. Lifted patches and levels have the same size along the new
            axis as along the others (or give `patch_size` per axis), windows are one token deep (or give
            `window_size` per axis) and tables of positions know nothing of it yet.

    Raises:
        CheckpointError: tensors of this architecture are missing or don't fit the case.
    """
    weights = standard_names(weights)
    rank = weights[STEM].ndim - 2
    check_rank(NAME, rank, ndim)
    shown = infer(weights)
    flat = {key: case[key] for key in ("out_channels", "scale_factors", "norm", "top_block") if key in case}
    given = {**shown, **case, "pyramid": {**(shown["pyramid"] or {}), **(case.get("pyramid") or flat)}}
    pyramid = any(name.startswith("simfp_") for name in weights)
    chosen = settings(given, rank=rank, ndim=ndim or rank, pyramid=pyramid)
    state = convert(weights, chosen, rank=rank, ndim=ndim or rank)
    return build(NAME, make, {"pyramid": pyramid, **chosen}, state, rank=rank, ndim=ndim)


def make(*, pyramid: bool, **settings: Any) -> Backbone:
    """A `ViTDet` or a `ViT`."""
    return ViTDet(**settings) if pyramid else ViT(**settings)


def standard_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformer and pyramid, without what is before the names of `ViT` and before `simfp_`.

    Raises:
        CheckpointError: there is no patch embedding.
    """
    found = {
        name: value
        for name, value in strip_prefix(weights, STEM).items()
        if re.match(r"(patch_embed\.proj|blocks\.\d+|pos_embed$)", name)
    }
    for name, value in weights.items():
        if match := re.search(r"(?:^|\.)(simfp_\d+\..*)$", name):
            found[match[1]] = value
    return found


def infer(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments as far as the tensors show them.

    Where blocks have tables of relative positions of two sizes, those with the smaller attend in windows;
    without such tables all blocks are taken to attend to all, with heads of 64 channels.

    Raises:
        CheckpointError: tensors of this architecture are missing.
    """
    weights = standard_names(weights)
    kernel = weights[STEM]
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    try:
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as fault:
        raise CheckpointError(f"{NAME}: expected a tensor named {fault.args[0]}, found none") from fault
    dim, patch = kernel.shape[0], kernel.shape[-1]
    found: dict[str, Any] = {
        "patch_size": patch,
        "in_chans": kernel.shape[1],
        "embed_dim": dim,
        "depth": depth,
        "num_heads": max(dim // 64, 1),
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "drop_path_rate": 0.0,
        "window_size": 0,
        "window_block_indexes": [],
        "residual_block_indexes": [
            index for index in range(depth) if f"blocks.{index}.residual.conv1.weight" in weights
        ],
        "use_rel_pos": "blocks.0.attn.rel_pos_w" in weights,
        "use_abs_pos": "pos_embed" in weights,
        "pyramid": infer_pyramid(weights, dim),
    }
    if found["use_abs_pos"]:
        places = weights["pos_embed"].shape[1]
        found["pretrain_use_cls_token"] = isqrt(places) ** 2 != places
        found["pretrain_img_size"] = patch * isqrt(places)
    found["img_size"] = found.get("pretrain_img_size", 224)
    if found["use_rel_pos"]:
        tables = [weights[f"blocks.{index}.attn.rel_pos_w"] for index in range(depth)]
        sides = [(len(table) + 1) // 2 for table in tables]
        found["num_heads"] = dim // tables[0].shape[1]
        found["img_size"] = patch * max(sides)
        if min(sides) < max(sides):
            found["window_size"] = min(sides)
            found["window_block_indexes"] = [index for index, side in enumerate(sides) if side == min(sides)]
    return found


def infer_pyramid(weights: Mapping[str, Tensor], dim: int) -> dict[str, Any] | None:
    """Arguments of the pyramid; None without one."""
    stages = sorted({int(match[1]) for name in weights if (match := re.match(r"simfp_(\d+)\.", name))})
    if not stages:
        return None
    scales = []
    for stage in stages:
        if f"simfp_{stage}.3.weight" in weights:
            scales.append(4.0)
        elif f"simfp_{stage}.0.weight" not in weights:
            scales.append(0.5)
        else:  # a transposed convolution has its inputs first
            doubled = weights[f"simfp_{stage}.0.weight"].shape[-1] == 2
            scales.append(2.0 if doubled else 1.0)
    last = max((name for name in weights if name.startswith(f"simfp_{stages[0]}.")), key=layer_number)
    channels = weights[f"simfp_{stages[0]}.{layer_number(last)}.weight"].shape[0]
    norm = "LN" if f"simfp_{stages[0]}.{layer_number(last)}.norm.weight" in weights else ""
    return {"out_channels": channels, "scale_factors": scales, "norm": norm}


def layer_number(name: str) -> int:
    """The place of a layer in its level: 4 for `simfp_1.4.weight`."""
    return int(name.split(".")[1])


def settings(case: Mapping[str, Any], *, rank: int, ndim: int, pyramid: bool) -> dict[str, Any]:
    """Settings of our `ViTDet`, or of `ViT` without a pyramid, without `ndim`.

    Args:
        case: the original's arguments, all of them.
        rank: of the weights.
        ndim: of the network.
        pyramid: whether there is one.

    Raises:
        CheckpointError: an argument that has no counterpart.
    """

    def sizes(key: str, new: int | None = None) -> list[int]:
        """A size per axis; where only the axes of the weights are given, the new ones get `new`, or the first."""
        given = case[key]
        if isinstance(given, Sequence) and len(given) == ndim:
            return list(given)
        own = per_axis(given, rank, key)
        return [own[0] if new is None else new] * (ndim - rank) + list(own)

    patch = sizes("patch_size")

    def whole(image: Sequence[int]) -> list[int]:
        """A size in whole patches, one at least."""
        return [max(side // step, 1) * step for side, step in zip(image, patch, strict=True)]

    windowed = bool(case["window_size"]) if isinstance(case["window_size"], int) else True
    found: dict[str, Any] = {
        "in_channels": case["in_chans"],
        "image_size": whole(sizes("img_size")),
        "patch_size": patch,
        "dim": case["embed_dim"],
        "depth": case["depth"],
        "heads": case["num_heads"],
        "mlp_ratio": case["mlp_ratio"],
        "qkv_bias": case["qkv_bias"],
        "drop_path": case["drop_path_rate"],
        "window_size": sizes("window_size", 1) if windowed else 1,
        "window_blocks": list(case["window_block_indexes"]) if windowed else [],
        "residual_blocks": list(case["residual_block_indexes"]),
        "relative_positions": case["use_rel_pos"],
        "absolute_positions": case["use_abs_pos"],
        "partial": "drop",
        "pretrain_size": whole(sizes("pretrain_img_size", patch[0])) if case["use_abs_pos"] else None,
    }
    return found | _pyramid_settings(case["pyramid"]) if pyramid else found


def _pyramid_settings(levels: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the feature pyramid."""
    extras = {"LastLevelMaxPool": "maxpool", None: None}
    if levels.get("norm") not in ("LN", "", None) or levels.get("top_block") not in extras:
        raise CheckpointError(
            f"{NAME}: pyramid: expected norm LN or none and top_block LastLevelMaxPool or none, "
            f"got {levels.get('norm')!r} and {levels.get('top_block')!r}"
        )
    return {
        "scale_factors": [float(scale) for scale in levels["scale_factors"]],
        "out_channels": levels["out_channels"],
        "norm": levels.get("norm") == "LN",
        "extra": extras[levels.get("top_block")],
    }


def convert(weights: Mapping[str, Tensor], chosen: Mapping[str, Any], *, rank: int, ndim: int) -> dict[str, Tensor]:
    """State dict with our names; tables of positions get the rank of the network, kernels keep theirs."""
    pyramid = "scale_factors" in chosen
    patch, image = chosen["patch_size"], chosen["image_size"]
    windows = {index: per_axis(chosen["window_size"], ndim, "window_size") for index in chosen["window_blocks"]}
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("simfp_"):
            state[pyramid_name(name, chosen)] = value
            continue
        new = name
        for pattern, replacement in RENAMES:
            new = re.sub(pattern, replacement, new)
        if name == "pos_embed":
            places = [-(-side // step) for side, step in zip(chosen["pretrain_size"], patch, strict=True)]
            new, value = "positions.table", place_table(value, places)
        elif match := re.match(r"blocks\.(\d+)\.attn\.rel_pos_([dhw])$", name):
            axis = ndim - 3 + AXES.index(match[2])
            new = f"blocks.{match[1]}.attention.positions.tables.{axis}"
        state[f"vit.{new}" if pyramid else new] = value
    if chosen["relative_positions"]:
        for index in range(chosen["depth"]):
            grid: Sequence[int] = windows.get(index) or [
                -(-side // step) for side, step in zip(image, patch, strict=True)
            ]
            for axis in range(ndim - rank):
                key = f"{'vit.' if pyramid else ''}blocks.{index}.attention.positions.tables.{axis}"
                like = state.get(key.removesuffix(str(axis)) + str(ndim - 1))
                if like is not None:
                    state[key] = like.new_zeros(2 * grid[axis] - 1, like.shape[1])
    return state


def place_table(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Absolute positions `(1, places, C)`, perhaps behind a class token's, on their grid: `(1, *grid, C)`.

    Raises:
        CheckpointError: another number of places.
    """
    places = int(torch.tensor(grid).prod())
    if table.shape[1] not in (places, places + 1):
        raise CheckpointError(
            f"{NAME}: weights don't fit the case: pos_embed has {table.shape[1]} places, expected {places} of a grid "
            f"{tuple(grid)}, or one more"
        )
    return table[:, -places:].unflatten(1, tuple(grid))


def pyramid_name(name: str, chosen: Mapping[str, Any]) -> str:
    """Our name of a tensor of the pyramid: `simfp_1.4.norm.weight` → `pyramid.p1.reduce.1.weight`."""
    level, layer, *rest = name.split(".")
    patch = chosen["patch_size"]
    stage = int(level.removeprefix("simfp_"))  # log2 of the stride
    scale = next((one for one in chosen["scale_factors"] if int(log2(patch[-1] / one)) == stage), 1.0)
    own = level_name([int(side / scale) for side in patch])
    steps = {4.0: 4, 2.0: 1, 1.0: 0, 0.5: 1}.get(scale, 0)
    if int(layer) < steps:
        return f"pyramid.{own}.resample.{layer}.{rest[-1]}"
    tail = f"{'1' if rest[0] == 'norm' else '0'}.{rest[-1]}"
    return f"pyramid.{own}.{'reduce' if int(layer) == steps else 'merge'}.{tail}"

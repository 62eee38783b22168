"""The settings of the U-Nets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FoldedUNetSettings", "HaarUNetSettings", "UNetBackboneSettings", "UNetSettings"]


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """A `UNet` and its parts.

    Attributes:
        ndim: 2 or 3.
        in_channels: channels of `x`.
        out_channels: channels of the result.
        width: channels of the finest level.
        multipliers: channels of each level as multiples of `width`, finest first.
        self_condition: take an earlier estimate beside `x` (Chen et al. 2023, arXiv:2208.04202, section 3).
        condition_channels: channels of that estimate; `out_channels` where it is not given.
        groups: groups of every group normalisation; they must divide the channels.
        eps: constant of every normalisation.
        block: "weight_standardised", "pre_norm" or "separable".
        attention: "linear", "full", "window" or "none", one for all levels or one for each, finest first.
        middle_attention: the same, for the middle.
        heads: attention heads.
        head_dim: channels of a head; None shares the level's channels out.
        attention_groups: groups of the normalisations around attention; None means `groups`.
        attention_bias: whether queries, keys and values have a bias.
        window: voxels of a window for "window" at most, one number or one per axis.
        down: "space_to_depth", "strided" or "average".
        up: "nearest_conv", "nearest", or "linear_conv" and "linear", which interpolate (bilinear, trilinear).
        wiring: "paired": each decoder block takes the skip of its encoder block, resampling changes the
            width, a last block takes the stem. "dense": resampled features are skips too, blocks change the
            width (Ho et al. 2020).
        blocks_per_level: residual blocks of an encoder level.
        strides: voxels between the voxels of the next level, one number, one per step between levels, or for
            each step one per axis, e.g. `((1, 2, 2), (2, 2, 2))` for thick slices.
        dropout: probability, inside the blocks, when training.
        time_activation: "gelu" or "silu".
        stem_kernel: width of the first convolution.
        head_kernel: width of the last convolution.
        zero_head: start the last convolution at zero, so that the first answer is zero everywhere.
        shortcut_kernel: width of the convolution around a block that changes the channels.
        checkpointing: what the backward pass computes again: "none"; "norms" (normalisations, activations,
            attention tables: cheap); "blocks" (whole blocks besides); "auto" chooses by size.
        pad: pad sizes that are no multiple of the stride (edge values), and crop the result; with False
            such a size is an error.
    """

    ndim: int
    in_channels: int = 1
    out_channels: int = 1
    width: int = 64
    multipliers: Sequence[int] = (1, 2, 4)
    self_condition: bool = False
    condition_channels: int | None = None
    groups: int = 8
    eps: float = 1e-5
    block: str = "weight_standardised"
    attention: str | Sequence[str] = "linear"
    middle_attention: str = "full"
    heads: int = 4
    head_dim: int | None = 32
    attention_groups: int | None = 1
    attention_bias: bool = False
    window: int | Sequence[int] = 8
    down: str = "space_to_depth"
    up: str = "nearest_conv"
    wiring: str = "paired"
    blocks_per_level: int = 2
    strides: int | Sequence[int | Sequence[int]] = 2
    dropout: float = 0.0
    time_activation: str = "gelu"
    stem_kernel: int = 1
    head_kernel: int = 1
    zero_head: bool = False
    shortcut_kernel: int = 1
    checkpointing: str = "auto"
    pad: bool = True


@dataclass(frozen=True, kw_only=True)
class FoldedUNetSettings(UNetSettings):
    """A `FoldedUNet`; channels are as seen from outside.

    Attributes:
        fold: voxels per block, one number or one per axis.
    """

    fold: int | Sequence[int] = 2


@dataclass(frozen=True, kw_only=True)
class HaarUNetSettings(UNetSettings):
    """A `HaarUNet`; channels are as seen from outside.

    Attributes:
        axes: spatial axes that are halved, 0 the first; None for all. Leave out the axis of thick slices.
        levels: how often; each level transforms all bands of the one before, so that they keep one size.
    """

    axes: Sequence[int] | None = None
    levels: int = 1


@dataclass(frozen=True, kw_only=True)
class UNetBackboneSettings(UNetSettings):
    """A `UNetBackbone`; what is said of the input and output of a `UNet` is not used, but for `in_channels`.

    Attributes:
        finest: number of the first level that is given out; the decoder ends there.
        fold: see `FoldedUNetSettings`; 1 for a plain `UNet`.
    """

    finest: int = 0
    fold: int | Sequence[int] = 1

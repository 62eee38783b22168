"""One U-Net for every rank and task, its parts chosen by name.

With its defaults it is the pretraining network of the original (Di Via et al. 2025, arXiv:2407.18125);
with `wiring="dense"` and the parts of Ho et al. 2020 it is the network of Fast-DDPM
(Jiang et al. 2025, arXiv:2405.14802). `voxelry.interop.from_reference` knows the settings of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.core.settings import plain
from voxelry.models.unet.parts import (
    CHECKPOINTING,
    Level,
    NormAct,
    Parts,
    build_levels,
    checkpointing_for,
    level_strides,
)
from voxelry.nn import nd
from voxelry.nn.lean import rows
from voxelry.nn.time import TimeEmbedding

__all__ = ["UNet"]


class UNet(nn.Module):
    """Encoder and decoder with skips, `(B, in_channels, *S) -> (B, out_channels, *S)`, any size.

    Args:
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

    Raises:
        SettingError: an unknown name or numbers that do not fit together.
    """

    def __init__(
        self,
        *,
        ndim: int,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        self_condition: bool = False,
        condition_channels: int | None = None,
        groups: int = 8,
        eps: float = 1e-5,
        block: str = "weight_standardised",
        attention: str | Sequence[str] = "linear",
        middle_attention: str = "full",
        heads: int = 4,
        head_dim: int | None = 32,
        attention_groups: int | None = 1,
        attention_bias: bool = False,
        window: int | Sequence[int] = 8,
        down: str = "space_to_depth",
        up: str = "nearest_conv",
        wiring: str = "paired",
        blocks_per_level: int = 2,
        strides: int | Sequence[int | Sequence[int]] = 2,
        dropout: float = 0.0,
        time_activation: str = "gelu",
        stem_kernel: int = 1,
        head_kernel: int = 1,
        zero_head: bool = False,
        shortcut_kernel: int = 1,
        checkpointing: str = "auto",
        pad: bool = True,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self._settings = {name: plain(value) for name, value in settings.items()}
        self.ndim = check_ndim(ndim)
        self.in_channels, self.out_channels, self.pad = in_channels, out_channels, pad
        self.self_condition = self_condition
        self.condition_channels = (condition_channels or out_channels) if self_condition else 0
        if checkpointing not in CHECKPOINTING:
            raise SettingError(f"checkpointing: expected one of {', '.join(CHECKPOINTING)}, got {checkpointing!r}")
        self.checkpointing = checkpointing
        self.strides = level_strides(strides, len(multipliers) - 1, ndim)
        embedding = 4 * width
        parts = Parts(
            ndim=ndim,
            block=block,
            down=down,
            up=up,
            embedding=embedding,
            groups=groups,
            eps=eps,
            dropout=dropout,
            shortcut_kernel=shortcut_kernel,
            heads=heads,
            head_dim=head_dim,
            attention_groups=attention_groups or groups,
            attention_bias=attention_bias,
            window=per_axis(window, ndim, "window"),
        )
        kinds = [attention] * len(multipliers) if isinstance(attention, str) else list(attention)
        if len(kinds) != len(multipliers):
            raise SettingError(f"attention: expected 1 or {len(multipliers)} names (one per level), got {len(kinds)}")
        widths = [width * factor for factor in multipliers]
        stem_in = in_channels + self.condition_channels
        self.stem = nd.conv(ndim)(stem_in, width, stem_kernel, padding=stem_kernel // 2)
        self.time = TimeEmbedding(width, embedding, activation=time_activation)
        self.down, self.up = build_levels(parts, wiring, width, widths, kinds, blocks_per_level, self.strides)
        self.middle1 = parts.make_block(widths[-1], widths[-1])
        self.middle_attention = parts.make_attention(middle_attention, widths[-1])
        self.middle2 = parts.make_block(widths[-1], widths[-1])
        self.takes_stem = wiring == "paired"
        last = width if self.takes_stem else widths[0]
        self.final = parts.make_block(2 * width, width) if self.takes_stem else NormAct(last, groups=groups, eps=eps)
        self.feature_channels = last
        self.head = nd.conv(ndim)(last, out_channels, head_kernel, padding=head_kernel // 2)
        if zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def settings(self) -> dict[str, Any]:
        """Plain values from which `UNet(**settings)` builds this network again."""
        return dict(self._settings)

    @property
    def stride(self) -> tuple[int, ...]:
        """Input voxels per voxel of the coarsest level, per axis."""
        return tuple(prod(steps[axis] for steps in self.strides) for axis in range(self.ndim))

    def forward(self, x: Tensor, time: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: `(B, in_channels, *S)`.
            time: time steps `(B,)`, or None to leave the embedding out.
            condition: earlier estimate `(B, condition_channels, *S)`; zeros where it is None.

        Returns:
            `(B, out_channels, *S)`.

        Raises:
            SettingError: `x` or `condition` has another rank, channels or size than expected.
        """
        return self.head(self.features(x, time, condition))

    def features(self, x: Tensor, time: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Decoder features, the input of `head`: `(B, feature_channels, *S)`."""
        size = x.shape[2:]
        x = self._stack(x, condition)
        missing = [-length % step for length, step in zip(size, self.stride, strict=True)]
        if any(missing) and not self.pad:
            raise SettingError(f"size: {tuple(size)} is no multiple of the stride {self.stride} and pad is off")
        if any(missing):
            x = F.pad(x, [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)], mode="replicate")
        x = self._body(x, None if time is None else self.time(time.reshape(-1).expand(x.shape[0])))
        for axis, (gap, length) in enumerate(zip(missing, size, strict=True), start=2):
            x = x.narrow(axis, gap // 2, length) if gap else x
        return x

    def _stack(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels:
            axes = ", ".join(("B", str(self.in_channels), "D", "H", "W")[: 2 + self.ndim])
            raise SettingError(f"x: expected shape ({axes}), got {tuple(x.shape)}")
        if condition is not None:
            expected = (x.shape[0], self.condition_channels, *x.shape[2:])
            if not self.condition_channels or tuple(condition.shape) != expected:
                wanted = expected if self.condition_channels else "none (self_condition is off)"
                raise SettingError(f"condition: expected {wanted}, got shape {tuple(condition.shape)}")
        elif self.condition_channels:
            condition = x.new_zeros(x.shape[0], self.condition_channels, *x.shape[2:])
        return x if condition is None else torch.cat((condition.to(x.dtype), x), dim=1)

    def decoder(self, x: Tensor, count: int) -> list[Tensor]:
        """What the decoder knows at its `count` coarsest levels, coarse to fine; no time, no estimate.

        Args:
            x: `(B, in_channels, *S)` of a size that is a multiple of the stride.
        """
        found: list[Tensor] = []
        self._body(self._stack(x, None), None, taps=found, count=count)
        return found

    def _body(self, x: Tensor, embedding: Tensor | None, taps: list[Tensor] | None = None, count: int = 0) -> Tensor:
        policy = checkpointing_for(self.checkpointing, x, self.stem.out_channels)

        # a compiler fuses and repeats the cheap parts by itself
        again = policy != "none" and not torch.compiler.is_compiling()

        def run(module: nn.Module, *args: Tensor | None) -> Tensor:
            if policy == "blocks" and torch.is_grad_enabled():
                return checkpoint(module, *args, recompute=again, use_reentrant=False)
            return module(*args, recompute=again)

        if again and x.device.type == "cpu":
            x = rows.dense(x)  # the convolutions of the CPU need no rearranging then
        x = self.stem(x)
        skips = [x]
        for level in levels(self.down):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                x = run(attention, run(block, x, embedding))
                skips.append(x)
            x = level.resample(x)
            if level.resample_is_skip:
                skips.append(x)
        x = run(self.middle1, x, embedding)
        x = run(self.middle_attention, x)
        x = run(self.middle2, x, embedding)
        for level in levels(self.up):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                x = run(attention, run(block, x, embedding, skips.pop()))
            if taps is not None:
                taps.append(x)
                if len(taps) == count:
                    return x
            x = level.resample(x)
        return run(self.final, x, embedding, skips.pop()) if self.takes_stem else run(self.final, x)


def levels(modules: nn.ModuleList) -> list[Level]:
    """The levels with their type, which `ModuleList` does not keep."""
    return [level for level in modules if isinstance(level, Level)]

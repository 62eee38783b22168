"""One U-Net for every rank and task, its parts chosen by name.

With its defaults it is the pretraining network of the original (Di Via et al. 2025, arXiv:2407.18125);
with `wiring="dense"` and the parts of Ho et al. 2020 it is the network of Fast-DDPM
(Jiang et al. 2025, arXiv:2405.14802). `voxelry.interop.from_reference` knows the settings of both.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim
from voxelry.core.settings import Configured, settle
from voxelry.models.unet.parts import (
    CHECKPOINTING,
    Level,
    NormAct,
    Parts,
    build_levels,
    checkpointing_for,
    level_strides,
)
from voxelry.models.unet.settings import UNetSettings
from voxelry.nn import nd
from voxelry.nn.lean import rows
from voxelry.nn.time import TimeEmbedding

__all__ = ["UNet"]


class UNet(Configured, nn.Module):
    """Encoder and decoder with skips, `(B, in_channels, *S) -> (B, out_channels, *S)`, any size.

    Raises:
        SettingError: an unknown name or numbers that do not fit together.
    """

    Settings = UNetSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = settle(UNetSettings, settings)
        self.ndim = check_ndim(own.ndim)
        self.in_channels, self.out_channels, self.pad = own.in_channels, own.out_channels, own.pad
        self.self_condition = own.self_condition
        self.condition_channels = (own.condition_channels or own.out_channels) if own.self_condition else 0
        check_choice("checkpointing", own.checkpointing, CHECKPOINTING)
        self.checkpointing = own.checkpointing
        self.strides = level_strides(own.strides, len(own.multipliers) - 1, own.ndim)
        parts = Parts(own)
        coarsest = own.width * own.multipliers[-1]
        stem_in = own.in_channels + self.condition_channels
        self.stem = nd.conv(own.ndim)(stem_in, own.width, own.stem_kernel, padding=own.stem_kernel // 2)
        self.time = TimeEmbedding(own.width, parts.embedding, activation=own.time_activation)
        self.down, self.up = build_levels(parts, self.strides)
        self.middle1 = parts.make_block(coarsest, coarsest)
        self.middle_attention = parts.make_attention(own.middle_attention, coarsest)
        self.middle2 = parts.make_block(coarsest, coarsest)
        self.takes_stem = own.wiring == "paired"
        last = self.feature_channels = own.width if self.takes_stem else own.width * own.multipliers[0]
        self.final: nn.Module = NormAct(last, groups=own.groups, eps=own.eps)
        if self.takes_stem:
            self.final = parts.make_block(2 * own.width, own.width)
        self.head = nd.conv(own.ndim)(last, own.out_channels, own.head_kernel, padding=own.head_kernel // 2)
        if own.zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

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

    def recomputed(self, voxels: int, itemsize: int = 4) -> str:
        """What the backward pass computes again for so many voxels of the finest level, see `checkpointing`."""
        return checkpointing_for(self.checkpointing, voxels * self.stem.out_channels * itemsize)

    def decoder(self, x: Tensor, count: int) -> list[Tensor]:
        """What the decoder knows at its `count` coarsest levels, coarse to fine; no time, no estimate.

        Args:
            x: `(B, in_channels, *S)` of a size that is a multiple of the stride.
        """
        found: list[Tensor] = []
        self._body(self._stack(x, None), None, taps=found, count=count)
        return found

    def _body(self, x: Tensor, embedding: Tensor | None, taps: list[Tensor] | None = None, count: int = 0) -> Tensor:
        policy = self.recomputed(x.shape[0] * x.shape[2:].numel(), x.element_size())

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

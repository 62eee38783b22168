"""Embedding of the diffusion time step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError

__all__ = ["TimeEmbedding", "sinusoids"]


ORDERS = ("sines_first", "cosines_first")


def sinusoids(time: Tensor, channels: int, order: str = "sines_first") -> Tensor:
    """Sines and cosines of the time at geometric frequencies, `(B,) -> (B, channels)` in [-1, 1].

    An odd `channels` ends in a column of zeros.

    Args:
        time: real numbers.
        channels: of the result.
        order: "sines_first": frequencies run from 1 to 1/10000 (Vaswani et al. 2017, section 3.5, with the end points
            of tensor2tensor, as in Ho et al. 2020). "cosines_first": they end one step before it (Dhariwal & Nichol
            2021, and the transformers of Peebles & Xie 2022, arXiv:2212.09748).
    """
    half = channels // 2
    exponents = torch.arange(half, device=time.device, dtype=torch.float32)
    steps = half if order == "cosines_first" else max(half - 1, 1)
    phase = time.to(torch.float32)[:, None] * torch.exp(exponents * (-math.log(10000) / steps))
    waves = (phase.cos(), phase.sin()) if order == "cosines_first" else (phase.sin(), phase.cos())
    return torch.nn.functional.pad(torch.cat(waves, dim=1), (0, channels % 2))


class TimeEmbedding(nn.Module):
    """Time step to embedding, `(B,) -> (B, out_channels)`: sinusoids, linear, activation, linear.

    Args:
        channels: number of sinusoids, at least 2.
        out_channels: size of the embedding; 4 × `channels` in Ho et al. 2020.
        activation: "gelu" or "silu".
        order: see `sinusoids`.

    Raises:
        SettingError: fewer than 2 sinusoids, an unknown activation or order.
    """

    def __init__(self, channels: int, out_channels: int, *, activation: str = "gelu", order: str = "sines_first"):
        super().__init__()
        if channels < 2:
            raise SettingError(f"width: a time embedding needs at least 2 channels, got {channels}")
        check_choice("time_activation", activation, ("gelu", "silu"))
        check_choice("time_order", order, ORDERS)
        self.channels, self.order = channels, order
        self.linear1 = nn.Linear(channels, out_channels)
        self.activation = nn.GELU() if activation == "gelu" else nn.SiLU()
        self.linear2 = nn.Linear(out_channels, out_channels)

    def forward(self, time: Tensor) -> Tensor:
        """Embed integer or real time steps `(B,)`."""
        wave = sinusoids(time, self.channels, self.order).to(self.linear1.weight.dtype)
        return self.linear2(self.activation(self.linear1(wave)))

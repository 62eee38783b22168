"""Positions of tokens on a grid: learned or fixed and added to the tokens, or relative between them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.nn import nd

__all__ = ["AbsolutePositions", "RelativePositions", "attend", "sine_positions"]


class AbsolutePositions(nn.Module):
    """A learned vector for every place of a grid, added to the tokens.

    Args:
        dim: channels of a token.
        grid: tokens per axis of the table.
    """

    def __init__(self, dim: int, grid: Sequence[int]):
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, *grid, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, size: Sequence[int]) -> Tensor:
        """Positions of a grid, `(1, *size, dim)`; for another grid the table is resized (`nd.resize_smoothly`)."""
        return nd.resize_smoothly(self.table.movedim(-1, 1), size).movedim(1, -1)


def sine_positions(places: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of each coordinate at geometric frequencies, `(N, ndim) -> (N, channels)` in [-1, 1].

    Each axis has a share of the channels with frequencies from 1 towards 1/10000 (Vaswani et al. 2017, section 3.5);
    what can't be shared out evenly is zeros at the end.
    """
    count = channels // places.shape[1] // 2
    exponents = torch.arange(count, device=places.device, dtype=torch.float32) / max(count, 1)
    phase = places.to(torch.float32)[..., None] * 10000**-exponents
    waves = torch.cat((phase.sin(), phase.cos()), dim=-1).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1]))


class RelativePositions(nn.Module):
    """What a query adds to its product with a key by how far they are apart, a table for each axis.

    Li et al. 2022 (arXiv:2112.01526, section 4.1): `bias_ij = Σ_axis q_i · R_axis[i_axis - j_axis]`, with the
    queries not scaled.

    Args:
        dim: channels of a head.
        grid: tokens per axis of the tables, which have `2 * size - 1` rows.
    """

    def __init__(self, dim: int, grid: Sequence[int]):
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(2 * size - 1, dim)) for size in grid)

    def forward(self, q: Tensor, grid: Sequence[int]) -> list[Tensor]:
        """Products of each query with the table of each axis.

        Args:
            q: queries `(B, heads, N, dim)` of a grid of tokens, not scaled.
            grid: its size, `N` tokens together; tables of another grid are resized (linear).

        Returns:
            For each axis `(B, heads, N, size)`: for a query, one number for every place of keys on that axis.
        """
        placed = q.unflatten(2, tuple(grid))
        terms = []
        for axis, (table, size) in enumerate(zip(self.tables, grid, strict=True), start=2):
            rows = relative_rows(table, size).to(q.dtype)
            product = torch.einsum("...id,ijd->...ij", placed.movedim(axis, -2), rows)
            terms.append(product.movedim(-2, axis).flatten(2, -2))
        return terms


def relative_rows(table: Tensor, size: int) -> Tensor:
    """Rows of a table for every query and key on an axis of `size`, `(2 * n - 1, dim) -> (size, size, dim)`."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places + size - 1]


def attend(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor] = ()) -> Tensor:
    """Scaled dot-product attention with the terms of `RelativePositions`, `(B, heads, N, dim)`.

    The terms enter the product itself, each beside a key's place on that axis as a one-hot vector, so the
    `N × N` biases are never made: memory grows with the tokens, not with their square.
    """
    if not terms:
        return F.scaled_dot_product_attention(q, k, v)
    dim, sizes = q.shape[-1], [term.shape[-1] for term in terms]
    places = torch.arange(k.shape[2], device=k.device)
    inner = [prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    marks = torch.cat([F.one_hot(places // step % size, size) for step, size in zip(inner, sizes, strict=True)], dim=-1)
    marks = marks.to(k.dtype).expand(*k.shape[:2], -1, -1)
    q = torch.cat((q * dim**-0.5, *terms), dim=-1)
    k = torch.cat((k, marks), dim=-1)
    v = F.pad(v, (0, q.shape[-1] - dim))  # the fast kernels want one width
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :dim]

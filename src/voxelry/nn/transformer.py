"""Parts of transformers on lists of tokens: `(B, L, C)`, or cells `(N, C)` that attend within groups.

Vaswani et al. 2017; conditioning by scales, shifts and gates as in Peebles & Xie 2022 (arXiv:2212.09748, section 3.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.nn.sparse import Grouping

__all__ = [
    "CrossAttention",
    "FeedForward",
    "HeadNorm",
    "Modulation",
    "SelfAttention",
    "attend_in_groups",
    "attention_heads",
    "heads_of",
    "modulated",
    "plain_norm",
]

EPS = 1e-6
SCORES = 1 << 24  # numbers of query-key products at a time, should a kernel make them


def attention_heads(channels: int, heads: int) -> int:
    """The number of heads, checked.

    Raises:
        SettingError: they don't divide the channels.
    """
    if channels % heads:
        raise SettingError(f"heads: {heads} heads can't share {channels} channels evenly")
    return heads


def plain_norm(x: Tensor, eps: float = EPS) -> Tensor:
    """Layer normalisation of the last axis without anything learned."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A normalised `x`, scaled by `1 + scale` and shifted."""
    return torch.addcmul(shift, plain_norm(x), 1 + scale)


class Modulation(nn.Module):
    """Shift, scale and gate of attention, then those of the layers behind it, `(B, C) -> 6 × (B, C)`; zero at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, 6 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """From an embedding before its activation."""
        return self.linear(F.silu(embedding)).chunk(6, dim=-1)


class HeadNorm(nn.Module):
    """Root mean square normalisation of each head's channels, `(..., heads, D)` (Zhang & Sennrich 2019)."""

    def __init__(self, heads: int, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, in float32."""
        return (F.normalize(x.float(), dim=-1) * self.gamma * x.shape[-1] ** 0.5).to(x.dtype)


def head_norm(wanted: bool, heads: int, channels: int) -> nn.Module:
    """`HeadNorm`, or nothing."""
    return HeadNorm(heads, channels // heads) if wanted else nn.Identity()


def heads_of(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of `(B, L, heads, D)`, `(B, M, heads, D)` twice, to `(B, L, heads * D)`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend_in_groups(qkv: Tensor, groups: Grouping) -> Tensor:
    """Attention of cells to those of their group, `(N, 3, heads, D) -> (N, heads * D)`.

    Groups of one length go together, so nothing is filled up and no mask is needed; of the longest ones few at a time.
    """
    found = []
    for bucket in groups.buckets:
        few = max(1, SCORES // (qkv.shape[2] * bucket.shape[1] ** 2))
        for rows in bucket.split(few):
            found.append(heads_of(*qkv[rows].unbind(2)).flatten(0, 1))
    return torch.cat(found)[groups.restore]


class SelfAttention(nn.Module):
    """Attention among tokens, `(B, L, C)`, or among the cells of each group, `(N, C)`.

    Args:
        channels: of a token.
        heads: attention heads.
        normed: whether queries and keys are normalised.

    Raises:
        SettingError: the heads don't divide the channels.
    """

    def __init__(self, channels: int, heads: int, *, normed: bool = False):
        super().__init__()
        self.heads = attention_heads(channels, heads)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.q_norm, self.k_norm = (head_norm(normed, heads, channels) for _ in range(2))

    def forward(self, x: Tensor, groups: Grouping | None = None) -> Tensor:
        """Attend."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if not isinstance(self.q_norm, nn.Identity):
            q, k, v = qkv.unbind(-3)
            qkv = torch.stack((self.q_norm(q), self.k_norm(k), v), dim=-3)
        mixed = heads_of(*qkv.unbind(-3)) if groups is None else attend_in_groups(qkv, groups)
        return self.out(mixed)


class CrossAttention(nn.Module):
    """Attention of tokens to those of a condition, `(B, L, C), (B, M, K) -> (B, L, C)`.

    Args:
        channels: of a token.
        condition: channels of a token of the condition.
        heads: attention heads.
        normed: whether queries and keys are normalised.

    Raises:
        SettingError: the heads don't divide the channels.
    """

    def __init__(self, channels: int, condition: int, heads: int, *, normed: bool = False):
        super().__init__()
        self.heads = attention_heads(channels, heads)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(condition, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.q_norm, self.k_norm = (head_norm(normed, heads, channels) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Attend."""
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(condition).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return self.out(heads_of(self.q_norm(q), self.k_norm(k), v))

    def cells(self, x: Tensor, condition: Tensor, items: Grouping, item: Tensor) -> Tensor:
        """Attention of cells `(N, C)` to the condition of their own item.

        Args:
            x: cells.
            condition: `(B, M, K)`.
            items: cells grouped by item.
            item: `(N,)`, the item of each cell.
        """
        groups = [rows for bucket in items.buckets for rows in bucket]
        found = [self(x[rows][None], condition[item[rows[0]]][None])[0] for rows in groups]
        return torch.cat(found)[items.restore]


class FeedForward(nn.Module):
    """Two linear layers with GELU between, in its tanh form, `(..., C) -> (..., C)`."""

    def __init__(self, channels: int, ratio: float = 4.0):
        super().__init__()
        inner = int(channels * ratio)
        self.layers = nn.Sequential(nn.Linear(channels, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Transform."""
        answer: Tensor = self.layers(x)
        return answer

"""Latents of several kinds that flow together: a dict of tensors, and one tensor for what knows of no dict."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

__all__ = ["Latents", "pack", "squared_errors", "unpack"]

Latents = Mapping[str, Tensor]
"""Named tensors of one batch, `(B, ...)` each."""


def pack(latents: Latents) -> Tensor:
    """One tensor of all numbers of an item, `(B, sum of numbers)`, in the order of the dict."""
    return torch.cat([each.flatten(1) for each in latents.values()], dim=1)


def unpack(packed: Tensor, like: Latents) -> dict[str, Tensor]:
    """The inverse of `pack`: views with the names and the shapes of `like`, whose batch may be another."""
    sizes = [prod(each.shape[1:]) for each in like.values()]
    parts = zip(like.items(), packed.split(sizes, dim=1), strict=True)
    return {name: part.view(-1, *each.shape[1:]) for (name, each), part in parts}


def squared_errors(found: Latents, expected: Latents, weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """Mean squared error of each kind times its weight, 1 where there is none; 0 for an empty batch.

    Kinds that are only in `found` or only in `expected` don't count: shape alone may be trained on.
    """
    weights = weights or {}
    return {
        name: weights.get(name, 1.0) * (found[name] - expected[name]).square().sum() / max(expected[name].numel(), 1)
        for name in expected
        if name in found
    }

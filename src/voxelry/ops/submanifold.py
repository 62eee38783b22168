"""Convolution at occupied cells alone: what is empty stays empty.

Graham & van der Maaten 2017 (arXiv:1706.01307). A 3-wide kernel reads a cell's neighbours by a map of rows, so nothing
of the size of the grid is ever made; of the gathered features only one tap of one block of cells exists at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["submanifold_convolve"]

BLOCK = 16384  # cells at a time: some megabytes of features


def submanifold_convolve(
    features: Tensor, neighbours: Tensor, weight: Tensor, bias: Tensor, *, repeats: int = 1
) -> Tensor:
    """Convolve, `(M, C_in) -> (N, C_out)`.

    Args:
        features: of the cells; with `repeats` of their parents, each of which has as many children in a row.
        neighbours: `(N, taps)` rows of the neighbours, -1 where there is none. Taps `k` and `taps - 1 - k` are
            opposite: if `j` is `i`'s neighbour in one, `i` is `j`'s in the other.
        weight: `(taps, C_in, C_out)`.
        bias: `(C_out,)`.
        repeats: children of a cell of `features`; `N = M * repeats`.
    """
    result: Tensor = _Convolution.apply(features, neighbours, weight, bias, repeats)
    return result


class _Convolution(torch.autograd.Function):
    """Keeps the features alone for the way back, not the 27 gathered copies of them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, neighbours: Tensor, weight: Tensor, bias: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(features, neighbours, weight)
        ctx.repeats = repeats
        return _convolve(features, neighbours, weight, repeats).add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        features, neighbours, weight = ctx.saved_tensors
        to_features = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_features = _convolve(grad, neighbours, weight.flip(0).mT, 1)
            to_features = to_features.unflatten(0, (-1, ctx.repeats)).sum(dim=1)
        if ctx.needs_input_grad[2]:
            to_weight = _weight_gradient(features, neighbours, grad, ctx.repeats)
        if ctx.needs_input_grad[3]:
            to_bias = grad.sum(dim=0)
        return to_features, None, to_weight, to_bias, None


def _convolve(features: Tensor, neighbours: Tensor, weight: Tensor, repeats: int) -> Tensor:
    out = features.new_zeros(len(neighbours), weight.shape[2])
    for block, sums in zip(neighbours.split(BLOCK), out.split(BLOCK), strict=True):
        for tap, kernel in enumerate(weight):
            rows, sources = _present(block[:, tap], repeats)
            if len(rows) == len(sums):
                sums.addmm_(features[sources], kernel)
            elif len(rows):
                sums.index_add_(0, rows, features[sources] @ kernel)
    return out


def _weight_gradient(features: Tensor, neighbours: Tensor, grad: Tensor, repeats: int) -> Tensor:
    out = features.new_zeros(neighbours.shape[1], features.shape[1], grad.shape[1])
    for block, part in zip(neighbours.split(BLOCK), grad.split(BLOCK), strict=True):
        for tap, sums in enumerate(out):
            rows, sources = _present(block[:, tap], repeats)
            if len(rows):
                sums.addmm_(features[sources].mT, part[rows])
    return out


def _present(sources: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Rows that have a neighbour, and the rows of its features."""
    rows = (sources >= 0).nonzero().squeeze(1)
    return rows, sources[rows].long() // repeats

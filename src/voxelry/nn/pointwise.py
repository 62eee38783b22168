"""Convolutions of width 1 of volumes on a CPU as what they are, one product of matrices.

On one thread PyTorch goes a way of its own for them, which leaves channels-last memory and takes two to ten times
as long (torch 2.13, 64 to 8 channels of 48³). Rows are voxels here, columns channels: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ["convolve", "gradients", "is_pointwise"]


def is_pointwise(x: Tensor, weight: Tensor, *, padding: Sequence[int]) -> bool:
    """Whether an ungrouped convolution is such a product, and worth computing as one where `x` is."""
    return x.device.type == "cpu" and x.ndim == 5 and max(weight.shape[2:]) == 1 and not any(padding)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int]) -> Tensor:
    """`(B, C_in, *S), (C_out, C_in, *1) -> (B, C_out, *ceil(S / stride))`, `x` channels-last.

    Voxels between the strides are left out first.
    """
    if max(stride) > 1:
        x = x[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, *, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of `convolve`, for its input and its weight, each if wanted; `grad` and `x` channels-last."""
    rows = grad.movedim(1, -1)
    of_x = (rows @ weight.flatten(1)).movedim(-1, 1) if wanted[0] else None
    if not wanted[1]:
        return of_x, None
    product = rows.flatten(0, -2).t() @ x.movedim(1, -1).flatten(0, -2)
    return of_x, product.reshape(weight.shape)

"""Convolutions of one small volume on a CPU, by oneDNN where PyTorch would not use it.

PyTorch leaves a float32 convolution to oneDNN only if the batch has more than one sample, or if channels times
planes times rows are more than 20,480. A single volume below that goes through an unfolded copy, seven times slower
for 32 channels of 25×18×25 (torch 2.13, one thread), and such volumes are what a U-Net on a CPU consists of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from voxelry.ops import winograd

__all__ = ["convolve", "gradients", "is_skipped"]

SKIPPED = 20480
NARROWEST = 16  # channels from which on Winograd's gradients take half as long (the answer itself doesn't)
WORTHWHILE = 4096  # values; below, oneDNN's own preparations take longer


def is_skipped(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would leave oneDNN aside for this convolution, and it is worth asking for it."""
    return (
        x.shape[0] == 1
        and x.ndim == 5  # planes of an image are unfolded just as fast
        and x.shape[1:4].numel() <= SKIPPED
        and x.numel() >= WORTHWHILE
        and max(weight.shape[2:]) > 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Convolution by oneDNN, `(B, C_in, *S) -> (B, C_out, *S')`, with gradients of any order."""
    result: Tensor = _Convolution.apply(x, weight, bias, list(stride), list(padding))
    return result


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, *, stride: Sequence[int], padding: Sequence[int], wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution for its input and its weight, each if wanted; by oneDNN where it would be skipped."""
    again = is_skipped(x, weight) and not torch.is_grad_enabled()
    if again and max(stride) == 1 and winograd.pays(x, weight, narrowest=NARROWEST):
        return winograd.gradients(grad, x, weight, padding=padding, wanted=wanted)
    given = (grad.to_mkldnn(), x.to_mkldnn()) if again else (grad, x)  # its own layout is always left to it
    ndim = x.ndim - 2
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        *given, weight, None, list(stride), list(padding), [1] * ndim, False, [0] * ndim, 1, [*wanted, False]
    )
    return of_x.to_dense() if wanted[0] and of_x.is_mkldnn else of_x, of_weight


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, stride: list[int], padding: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, [1] * len(stride), 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_x, of_weight = gradients(
            grad, x, weight, stride=ctx.stride, padding=ctx.padding, wanted=[bool(flag) for flag in wanted[:2]]
        )
        of_bias = grad.sum(dim=(0, *range(2, grad.ndim))) if wanted[2] else None
        return of_x, of_weight, of_bias, None, None

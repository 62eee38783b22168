"""Per-channel statistics and affine maps over voxels in chunks that stay in the cache.

A feature map in channels-last memory is, sample by sample, a matrix of voxels × channels. Each pass here
goes over it in blocks of rows, small enough that intermediate results never leave the processor's
cache, and writes only its result: the memory traffic of one fused kernel without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from voxelry.nn import nd

__all__ = [
    "affine_backward",
    "as_rows",
    "dense",
    "empty_like_rows",
    "in_rows",
    "row_chunks",
    "sums",
]

CHUNK_ELEMENTS = 1 << 20


def in_rows(x: Tensor) -> bool:
    """Whether the row kernels handle `x`: on the CPU, single or double precision, no autocast."""
    precise = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and precise and not torch.is_autocast_enabled("cpu")


def dense(x: Tensor) -> Tensor:
    """`x` in channels-last memory, copied only if it is not."""
    return x.contiguous(memory_format=nd.channels_last(x.ndim - 2))


def empty_like_rows(x: Tensor, channels: int | None = None) -> Tensor:
    """Uninitialised feature map of `x`'s size in channels-last memory, with other channels if given."""
    shape = (x.shape[0], channels or x.shape[1], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=nd.channels_last(x.ndim - 2))


def as_rows(x: Tensor) -> Tensor:
    """View of a channels-last feature map as `(B, voxels, C)`."""
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1])


def row_chunks(rows: int, channels: int) -> Iterator[slice]:
    """Slices of rows that fit the cache."""
    step = max(1, CHUNK_ELEMENTS // channels)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean squared deviation of each channel of each sample, `(B, C, *S) -> (B, C), (B, C)` in float64.

    Deviations are taken from the mean of the first chunk, so that a large common offset costs no digits.
    """
    rows = as_rows(x)
    samples, count, channels = rows.shape
    first = torch.zeros(samples, channels, dtype=torch.float64)
    second = torch.zeros(samples, channels, dtype=torch.float64)
    centres = torch.empty(samples, channels, dtype=x.dtype)
    for sample, matrix in enumerate(rows):
        centre = centres[sample]
        for chunk in row_chunks(count, channels):
            block = matrix[chunk]
            if chunk.start == 0:
                centre.copy_(block.mean(dim=0))
            block = block - centre
            ones = block.new_ones(block.shape[0])
            first[sample] += torch.mv(block.t(), ones)
            second[sample] += torch.mv(block.square_().t(), ones)
    first /= count
    return centres.double() + first, (second / count - first.square()).clamp_(min=0)


def affine_backward(grad: Tensor, x: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """`grad * scale + x * slope + offset`, all `(B, C)` factors, written into `grad`."""
    target, source = as_rows(grad), as_rows(x)
    for sample in range(x.shape[0]):
        for chunk in row_chunks(source.shape[1], x.shape[1]):
            block = target[sample, chunk]
            block.mul_(scale[sample]).add_(offset[sample]).addcmul_(source[sample, chunk], slope[sample])
    return grad

"""RoIAlign on a GPU, with neighbouring channels in neighbouring threads.

All tensors are of rank 3 and on one device. `matrices` are the maps from cells to bins along each axis,
`(K, bins, size)`. Forward, a program owns one bin and some channels. Backward, a program owns some cells of one
row and some channels and gathers from the RoIs of its image in their order: there are no atomic additions, and
two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward"]

_CHANNELS = 64
_CELLS = 8


@triton.jit
def _forward_kernel(
    features: Any, batch: Any, wz: Any, wy: Any, wx: Any, bz: Any, by: Any, bx: Any, out: Any,
    channels: Any, depth: Any, height: Any, width: Any, bins_z: Any, bins_y: Any, bins_x: Any,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    place = tl.program_id(0)
    r = place % bins_x
    q = (place // bins_x) % bins_y
    p = (place // (bins_x * bins_y)) % bins_z
    k = place // (bins_x * bins_y * bins_z)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = lane < channels
    image = tl.load(batch + k)
    total = tl.zeros((BLOCK,), dtype=features.dtype.element_ty)
    row_z, row_y, row_x = k * bins_z + p, k * bins_y + q, k * bins_x + r
    for z in range(tl.load(bz + 2 * row_z), tl.load(bz + 2 * row_z + 1)):
        weight_z = tl.load(wz + row_z.to(tl.int64) * depth + z)
        for y in range(tl.load(by + 2 * row_y), tl.load(by + 2 * row_y + 1)):
            weight_y = weight_z * tl.load(wy + row_y.to(tl.int64) * height + y)
            if weight_y != 0:
                for x in range(tl.load(bx + 2 * row_x), tl.load(bx + 2 * row_x + 1)):
                    weight = weight_y * tl.load(wx + row_x.to(tl.int64) * width + x)
                    if weight != 0:
                        cell = ((image * depth + z) * height + y) * width + x
                        total += weight * tl.load(features + cell * channels + lane, mask=valid, other=0.0)
    tl.store(out + place.to(tl.int64) * channels + lane, total, mask=valid)


@triton.jit
def _backward_kernel(
    grad: Any, order: Any, offsets: Any, wz: Any, wy: Any, wx: Any, out: Any,
    channels: Any, depth: Any, height: Any, width: Any, bins_z: Any, bins_y: Any, bins_x: Any,
    BLOCK: tl.constexpr, CELLS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0)
    y = row % height
    z = (row // height) % depth
    image = row // (height * depth)
    x = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    lane = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside, valid = x < width, lane < channels
    total = tl.zeros((CELLS, BLOCK), dtype=grad.dtype.element_ty)
    for place in range(tl.load(offsets + image), tl.load(offsets + image + 1)):
        k = tl.load(order + place)
        for p in range(bins_z):
            weight_z = tl.load(wz + (k * bins_z + p) * depth + z)
            if weight_z != 0:
                for q in range(bins_y):
                    weight_y = weight_z * tl.load(wy + (k * bins_y + q) * height + y)
                    if weight_y != 0:
                        for r in range(bins_x):
                            weight = weight_y * tl.load(wx + (k * bins_x + r) * width + x, mask=inside, other=0.0)
                            bin_ = ((k * bins_z + p) * bins_y + q) * bins_x + r
                            value = tl.load(grad + bin_ * channels + lane, mask=valid, other=0.0)
                            total += weight[:, None] * value[None, :]
    cell = row.to(tl.int64) * width + x
    tl.store(out + cell[:, None] * channels + lane[None, :], total, mask=inside[:, None] & valid[None, :])


def forward(features: Tensor, batch: Tensor, matrices: Sequence[Tensor], out: Tensor) -> None:
    """RoIs of `features` `(B, C, D, H, W)` into `out` `(K, C, P, Q, R)`."""
    bands = [_band(matrix) for matrix in matrices]
    last = features.movedim(1, -1).contiguous()
    found = torch.empty(out.movedim(1, -1).shape, dtype=out.dtype, device=out.device)
    block = _lanes(out.shape[1])
    grid = (out[:, 0].numel(), triton.cdiv(out.shape[1], block))
    _forward_kernel[grid](
        last, batch, *matrices, *bands, found, *features.shape[1:], *out.shape[2:], BLOCK=block
    )  # fmt: skip
    out.copy_(found.movedim(-1, 1))


def backward(grad: Tensor, batch: Tensor, matrices: Sequence[Tensor], out: Tensor) -> None:
    """Gradients `(K, C, P, Q, R)` of RoIs into `out` `(B, C, D, H, W)`, all of which is written."""
    order = batch.argsort(stable=True)
    offsets = torch.searchsorted(batch[order], torch.arange(out.shape[0] + 1, device=batch.device))
    last = grad.movedim(1, -1).contiguous()
    found = torch.empty(out.movedim(1, -1).shape, dtype=out.dtype, device=out.device)
    block = _lanes(out.shape[1])
    rows = out.shape[0] * out.shape[2] * out.shape[3]
    grid = (rows, triton.cdiv(out.shape[4], _CELLS), triton.cdiv(out.shape[1], block))
    _backward_kernel[grid](
        last, order, offsets, *matrices, found, *out.shape[1:], *grad.shape[2:], BLOCK=block, CELLS=_CELLS
    )
    out.copy_(found.movedim(-1, 1))


def _lanes(channels: int) -> int:
    return min(_CHANNELS, triton.next_power_of_2(channels))


def _band(matrix: Tensor) -> Any:
    """First cell and end of each bin, `(K, bins, 2)` int32; `(0, 0)` for a bin without weight."""
    used = matrix != 0
    size = matrix.shape[2]
    low = used.to(torch.uint8).argmax(dim=2)
    high = size - used.flip(2).to(torch.uint8).argmax(dim=2)
    return torch.stack((low, torch.where(used.any(dim=2), high, low)), dim=2).to(torch.int32)

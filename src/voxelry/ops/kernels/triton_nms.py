"""Greedy suppression of boxes on a GPU: who overlaps whom as bits, then one pass over the bits.

Row `i` of the table holds, 64 to a word, which boxes of a lower score box `i` would suppress. One program then
goes through the blocks of 64: inside a block box by box, in a register; to the rest of the table a block at once.
Nothing is copied to the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["LIMIT", "survivors"]

LIMIT = 1 << 15
"""Boxes whose table is 128 MB; more are for the version that goes block by block."""

_SIZE = 64  # boxes to a word


@triton.jit
def _either(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    return first | second


@triton.jit
def _tabulate(
    boxes: tl.tensor,
    groups: tl.tensor,
    threshold: tl.tensor,
    words: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    NDIM: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """The word of 64 rows in one column of the table; columns left of the diagonal stay 0."""
    if tl.program_id(1) < tl.program_id(0):
        return
    lanes = tl.arange(0, SIZE)
    rows = tl.program_id(0) * SIZE + lanes
    columns = tl.program_id(1) * SIZE + lanes
    row_exists, column_exists = rows < count, columns < count
    for axis in tl.static_range(NDIM):
        low = tl.load(boxes + rows * (2 * NDIM) + axis, mask=row_exists, other=0)
        high = tl.load(boxes + rows * (2 * NDIM) + NDIM + axis, mask=row_exists, other=0)
        other_low = tl.load(boxes + columns * (2 * NDIM) + axis, mask=column_exists, other=0)
        other_high = tl.load(boxes + columns * (2 * NDIM) + NDIM + axis, mask=column_exists, other=0)
        common = tl.minimum(high[:, None], other_high[None, :]) - tl.maximum(low[:, None], other_low[None, :])
        if axis == 0:
            inner = tl.maximum(common, 0)
            volume = tl.maximum(high - low, 0)
            other_volume = tl.maximum(other_high - other_low, 0)
        else:
            inner = inner * tl.maximum(common, 0)
            volume = volume * tl.maximum(high - low, 0)
            other_volume = other_volume * tl.maximum(other_high - other_low, 0)
    union = volume[:, None] + other_volume[None, :] - inner
    some = union > 0
    if boxes.dtype.element_ty == tl.float32:
        overlap = tl.div_rn(inner, tl.where(some, union, 1))  # `/` isn't correctly rounded in float32
    else:
        overlap = inner / tl.where(some, union, 1)
    group = tl.load(groups + rows, mask=row_exists, other=0)
    other_group = tl.load(groups + columns, mask=column_exists, other=0)
    hit = some & (overlap > tl.load(threshold)) & (group[:, None] == other_group[None, :])
    hit = hit & row_exists[:, None] & column_exists[None, :] & (columns[None, :] > rows[:, None])
    bits = tl.where(hit, 1, 0).to(tl.int64) << lanes[None, :].to(tl.int64)
    tl.store(words + rows.to(tl.int64) * width + tl.program_id(1), tl.sum(bits, axis=1), mask=row_exists)


@triton.jit
def _resolve(
    words: tl.tensor, suppressed: tl.tensor, count: tl.tensor, width: tl.tensor, SIZE: tl.constexpr, WIDTH: tl.constexpr
) -> None:
    """Set the bit of every suppressed box, from the best block of boxes to the worst."""
    lanes = tl.arange(0, SIZE).to(tl.int64)
    for block in range(0, width):
        gone = tl.load(suppressed + block)
        for lane in tl.static_range(SIZE):
            row = block * SIZE + lane
            word = tl.load(words + row.to(tl.int64) * width + block, mask=row < count, other=0)
            gone = tl.where(((gone >> lane) & 1) == 0, gone | word, gone)
        tl.store(suppressed + block, gone)
        rows = block * SIZE + lanes
        kept = (((gone >> lanes) & 1) == 0) & (rows < count)
        for start in range(block + 1, width, WIDTH):
            columns = start + tl.arange(0, WIDTH)
            inside = columns < width
            tile = tl.load(
                words + rows[:, None] * width + columns[None, :], mask=kept[:, None] & inside[None, :], other=0
            )
            before = tl.load(suppressed + columns, mask=inside, other=0)
            tl.store(suppressed + columns, before | tl.reduce(tile, 0, _either), mask=inside)
        tl.debug_barrier()  # the next block reads what other threads wrote here


def survivors(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which boxes are kept, `(N, 2 * ndim)` by falling score and their groups `(N,)` `-> (N,)` bool.

    float32 or float64, finite, at most `LIMIT` boxes.
    """
    count, width = len(boxes), triton.cdiv(len(boxes), _SIZE)
    if not count:
        return torch.zeros(0, dtype=torch.bool, device=boxes.device)
    boxes, groups = boxes.contiguous(), groups.contiguous()
    words = torch.zeros(count, width, dtype=torch.int64, device=boxes.device)
    suppressed = torch.zeros(width, dtype=torch.int64, device=boxes.device)
    bound = boxes.new_full((1,), threshold)  # written on the device: no copy that waits
    # Fused multiply-add would round a union otherwise than PyTorch does.
    _tabulate[(width, width)](
        boxes, groups, bound, words, count, width, NDIM=boxes.shape[1] // 2, SIZE=_SIZE, enable_fp_fusion=False
    )
    _resolve[(1,)](words, suppressed, count, width, SIZE=_SIZE, WIDTH=64, num_warps=8, enable_fp_fusion=False)
    bits = (suppressed[:, None] >> torch.arange(_SIZE, device=boxes.device)) & 1
    return bits.reshape(-1)[:count] == 0

"""Voxels that packed masks have in a region or share, counted eight at a time without unpacking them.

A mask is the bits of its window in C order, most significant first, from byte `at[k]` of `bits` on.
"""

from __future__ import annotations

from typing import Any

from voxelry.ops.kernels import jit

__all__ = ["count_inside", "count_shared"]


@jit
def _eight(bits: Any, offset: int, count: int) -> int:
    """The next `count` bits, 1 to 8, left-aligned in a byte."""
    place, shift = offset >> 3, offset & 7
    value = int(bits[place]) << shift
    if shift + count > 8:
        value |= int(bits[place + 1]) >> (8 - shift)
    return value & 0xFF & (0xFF00 >> count)


@jit
def _ones(value: int) -> int:
    """Bits set in a byte."""
    value -= (value >> 1) & 0x55
    value = (value & 0x33) + ((value >> 2) & 0x33)
    return (value + (value >> 4)) & 0x0F


@jit
def _offset(place: Any, start: Any, size: Any, at: int) -> int:
    """Bit at which the voxel `place` of the volume lies in a mask."""
    flat = 0
    for axis in range(len(size)):
        flat = flat * size[axis] + place[axis] - start[axis]
    return 8 * at + flat


@jit
def _next_row(place: Any, low: Any, high: Any) -> bool:
    """Go on to the next row of a region along its last axis; False after the last one."""
    for axis in range(len(place) - 2, -1, -1):
        place[axis] += 1
        if place[axis] < high[axis]:
            return True
        place[axis] = low[axis]
    return False


@jit
def count_inside(bits: Any, at: Any, starts: Any, sizes: Any, chosen: Any, lows: Any, highs: Any, counts: Any) -> None:
    """Voxels of the masks `chosen` `(P,)` in regions `lows` to `highs` `(P, ndim)` within their windows."""
    for number in range(len(chosen)):
        low, high, mask = lows[number], highs[number], chosen[number]
        total, place = 0, low.copy()
        going = (low < high).all()
        while going:
            offset = _offset(place, starts[mask], sizes[mask], at[mask])
            length = high[-1] - low[-1]
            for step in range(0, length, 8):
                total += _ones(_eight(bits, offset + step, min(8, length - step)))
            going = _next_row(place, low, high)
        counts[number] = total


@jit
def count_shared(
    bits: Any, at: Any, starts: Any, sizes: Any, first: Any, second: Any, lows: Any, highs: Any, counts: Any
) -> None:
    """Voxels that the masks `first` and `second` `(P,)` share in regions within both their windows."""
    for number in range(len(first)):
        low, high, one, other = lows[number], highs[number], first[number], second[number]
        total, place = 0, low.copy()
        going = (low < high).all()
        while going:
            here = _offset(place, starts[one], sizes[one], at[one])
            there = _offset(place, starts[other], sizes[other], at[other])
            length = high[-1] - low[-1]
            for step in range(0, length, 8):
                width = min(8, length - step)
                total += _ones(_eight(bits, here + step, width) & _eight(bits, there + step, width))
            going = _next_row(place, low, high)
        counts[number] = total

"""Convolutions of width 3 in volumes with 3.4 times fewer multiplications, on a CPU.

Winograd's minimal filtering F(2, 3) along each axis (Lavin & Gray 2016, arXiv:1509.09308, section 4.1): tiles of 2³
voxels of the answer come from 4³ of the input. Both are turned into 64 numbers each, by sums and differences along one
axis after the other; between them lie 64 products of matrices, tiles × channels in by channels in × channels out. The
way back is the same, transposed. A few tiles are turned at a time, so that they stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["convolve", "pays"]

INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)  # 4 voxels to 4 points
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)  # 4 points to 2 voxels
KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))  # 3 weights to 4 points
POINTS, STEP = 4, 2  # of a tile along an axis; voxels from one tile to the next
ONES = 21  # the point, of 64, that is added to every voxel of a tile
NARROWEST, WIDEST = 64, 128  # channels
WORTHWHILE = 4096  # voxels
THREADS = 2  # turning is done by one
PART = 1 << 19  # numbers of the points that are turned at a time

Terms = tuple[np.ndarray, np.ndarray, np.ndarray]


def pays(x: Tensor, weight: Tensor, *, narrowest: int = NARROWEST) -> bool:
    """Whether a convolution of stride 1 with these kernels is of this kind, and so faster than oneDNN's.

    Measured on one thread with AVX2: 0.7 to 0.9 of its time for 64 and 128 channels, more for fewer, for which turning
    takes as long as is saved, and for more, whose kernels no longer fit in the cache. See benchmarks/RESULTS.md.

    Args:
        narrowest: channels from which on it does.
    """
    narrow, wide = sorted(weight.shape[:2])
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3, 3)
        and narrow >= narrowest
        and wide <= WIDEST
        and x.numel() >= WORTHWHILE * x.shape[1]
        and torch.get_num_threads() <= THREADS
        and not torch.compiler.is_compiling()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: Sequence[int]) -> Tensor:
    """Convolution `(B, C_in, *S), (C_out, C_in, 3, 3, 3) -> (B, C_out, *S')` in float32, channels-last.

    Gradients of any order. Differs from PyTorch's by rounding, which is less here: sums are shorter.
    """
    result: Tensor = _Winograd.apply(x, weight, bias, tuple(padding))
    return result


@dataclass(frozen=True, eq=False)
class Axis:
    """Tiles that follow each other along an axis.

    Attributes:
        tiles: how many.
        given, made: the voxels they are made from, and those of the answer that they make: first, and one behind the
            last.
        maps: weights, columns and number of the terms of voxels to points ("into"), points to the answer ("out"), and
            of both transposed. Points are ordered by kind, then by tile.
    """

    tiles: int
    given: tuple[int, int]
    made: tuple[int, int]
    maps: dict[str, Terms]


@lru_cache(maxsize=256)
def axis_of(size: int, padding: int, first: int, last: int) -> Axis:
    """Tiles `first` to `last` of an axis of `size` voxels."""
    tiles, at = last - first, STEP * first - padding
    low, high = max(0, at), min(size, at + STEP * tiles + 2)
    made = STEP * first, min(size + 2 * padding - 2, STEP * last)
    into = np.zeros((POINTS, tiles, high - low), np.float32)
    out = np.zeros((made[1] - made[0], POINTS, tiles), np.float32)
    for tile in range(tiles):
        for cell in range(POINTS):
            if low <= at + STEP * tile + cell < high:
                into[:, tile, at + STEP * tile + cell - low] = INPUT[:, cell]
        for cell in range(STEP * tile, min(STEP * (tile + 1), len(out))):
            out[cell, :, tile] = OUTPUT[cell - STEP * tile]
    forth, back = into.reshape(POINTS * tiles, -1), out.reshape(-1, POINTS * tiles)
    maps = {"into": terms(forth), "out": terms(back), "into, back": terms(forth.T), "out, back": terms(back.T)}
    return Axis(tiles, (low, high), made, maps)


def terms(matrix: np.ndarray) -> Terms:
    """Weights, columns and their number of every row of a sparse matrix."""
    from voxelry.ops.kernels.lines import TERMS

    columns = np.zeros((len(matrix), TERMS), np.int64)
    for row, place in zip(matrix, columns, strict=True):
        found = np.flatnonzero(row)
        place[: len(found)] = found
    return np.take_along_axis(matrix, columns, axis=1), columns, np.count_nonzero(matrix, axis=1)


@dataclass(frozen=True)
class Layout:
    """Where samples and cells along z, y and x lie in memory; and the parts of a line along x that are in one piece."""

    samples: np.ndarray
    cells: tuple[np.ndarray, np.ndarray, np.ndarray]
    parts: np.ndarray
    length: int


def layout_of_voxels(samples: int, shape: Sequence[int], strides: Sequence[int], channels: int) -> Layout:
    """Of a channels-last map."""
    z, y, x = (np.arange(size) * step for size, step in zip(shape, (*strides[1:], channels), strict=True))
    return Layout(np.arange(samples) * strides[0], (z, y, x), np.zeros(1, np.int64), shape[2] * channels)


def layout_of_points(samples: int, tiles: Sequence[int], channels: int) -> Layout:
    """Of points `(64, samples * tiles, channels)`."""
    step, kind, cells = channels, samples * math.prod(tiles) * channels, []
    for count in reversed(tiles):
        cells.append(np.add.outer(np.arange(POINTS) * kind, np.arange(count) * step).ravel())
        step, kind = step * count, kind * POINTS
    parts = np.arange(POINTS) * samples * math.prod(tiles) * channels
    return Layout(np.arange(samples) * step, (cells[2], cells[1], cells[0]), parts, tiles[2] * channels)


@lru_cache(maxsize=256)
def route(way: str, axes: tuple[Axis, Axis, Axis], samples: int, channels: int, strides: tuple[int, ...]) -> list[Any]:
    """What `kernels.lines.mix` is told of the three axes, and how many numbers each leaves."""
    shape = [end - first for first, end in (axis.given if "into" in way else axis.made for axis in axes)]
    voxels = layout_of_voxels(samples, shape, strides, channels)
    points = layout_of_points(samples, [axis.tiles for axis in axes], channels)
    given, made = (voxels, points) if way in ("into", "out, back") else (points, voxels)
    maps = [axis.maps[way] for axis in axes]
    deep, high = (len(cells) for cells in made.cells[:2])
    lines, width = len(given.cells[1]), len(given.cells[2]) * channels
    plane = lines * width

    def sums(*offsets: np.ndarray) -> np.ndarray:
        found: np.ndarray = offsets[0]
        for more in offsets[1:]:
            found = np.add.outer(found, more)
        return found.ravel()

    def rows(count: int, step: int) -> np.ndarray:
        return np.arange(count) * step

    first = (
        (sums(given.samples, given.cells[1], given.parts), given.cells[0], given.length),
        (
            sums(rows(samples, deep * plane), rows(lines, width), rows(len(given.parts), given.length)),
            rows(deep, plane),
            given.length,
        ),
    )
    count = samples * deep
    second = (
        (rows(count, plane), rows(lines, width), width),
        (rows(count, high * width), rows(high, width), width),
    )
    third = (
        (rows(count * high, width), rows(len(given.cells[2]), channels), channels),
        (sums(made.samples, *made.cells[:2]), made.cells[2], channels),
    )
    sizes = (count * plane, count * high * width, 0)
    return [(*each, *stage, size) for each, stage, size in zip(maps, (first, second, third), sizes, strict=True)]


def turn(way: str, axes: tuple[Axis, Axis, Axis], source: Tensor, target: Tensor) -> None:
    """One of the maps along all axes: voxels `(n, *S, C)` to points `(64, tiles, C)`, or back."""
    from voxelry.ops.kernels.lines import mix

    voxels = source if source.ndim == 5 else target
    steps = route(way, axes, len(voxels), voxels.shape[-1], voxels.stride()[:3])
    given = flat(source)
    for weights, columns, count, where, place, size in steps:
        made = np.empty(size, np.float32) if size else flat(target)
        mix(given, made, weights, columns, count, where, place)
        given = made


def flat(x: Tensor) -> np.ndarray:
    """The numbers from the first of `x` on, in the order of memory."""
    behind = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    found: np.ndarray = x.as_strided((behind,), (1,)).numpy()
    return found


def parts(batch: int, size: Sequence[int], padding: Sequence[int], channels: int) -> Iterator[tuple[slice, Any]]:
    """Samples and tiles of about `PART` numbers as points: samples together, or some layers or lines of one."""
    counts = [-(-(length + 2 * pad - 2) // STEP) for length, pad in zip(size, padding, strict=True)]
    together, numbers = [1, 1, 1], POINTS**3 * channels * counts[2]  # samples, layers, lines; of a line
    for axis, count in ((2, counts[1]), (1, counts[0]), (0, batch)):
        together[axis] = max(1, min(count, PART // numbers))
        numbers *= count
    whole = axis_of(size[2], padding[2], 0, counts[2])
    for sample, top, line in product(*(range(0, n, step) for n, step in zip((batch, *counts), together, strict=False))):
        layers = axis_of(size[0], padding[0], top, min(top + together[1], counts[0]))
        lines = axis_of(size[1], padding[1], line, min(line + together[2], counts[1]))
        yield slice(sample, min(sample + together[0], batch)), (layers, lines, whole)


def window(samples: slice, bounds: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    """Where a part lies in `(B, *S, C)`."""
    return samples, *(slice(*each) for each in bounds)


def kernel_points(weight: Tensor) -> Tensor:
    """`(C_out, C_in, 3, 3, 3) -> (64, C_in, C_out)`."""
    outer, inner = weight.shape[:2]
    return (all_axes(weight) @ weight.permute(2, 3, 4, 1, 0).reshape(-1, inner * outer)).unflatten(1, (inner, outer))


def kernel_gradient(points: Tensor) -> Tensor:
    """`kernel_points`, transposed: `(64, C_in, C_out) -> (C_out, C_in, 3, 3, 3)`."""
    found = all_axes(points).t() @ points.flatten(1)
    return found.reshape(3, 3, 3, *points.shape[1:]).permute(4, 3, 0, 1, 2)


def all_axes(like: Tensor) -> Tensor:
    """What takes 27 weights to 64 points, of the type of `like`."""
    one = like.new_tensor(KERNEL)
    return torch.kron(torch.kron(one, one), one)


class Spaces:
    """Memory for the points of a part, `(64, tiles, C_in)` and `(64, tiles, C_out)`, which all parts share."""

    def __init__(self, like: Tensor, inner: int, outer: int):
        self.spaces, self.channels = [like.new_empty(0) for _ in range(2)], (inner, outer)

    def __call__(self, samples: slice, axes: Sequence[Axis]) -> list[Tensor]:
        """Those of some samples and tiles."""
        tiles = (samples.stop - samples.start) * math.prod(axis.tiles for axis in axes)
        return [
            space.resize_(POINTS**3, tiles, channels)
            for space, channels in zip(self.spaces, self.channels, strict=True)
        ]


def answer(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """`convolve` without a graph."""
    x, kernel = dense(x), kernel_points(weight)
    inner, outer = kernel.shape[1:]
    y = x.new_empty(len(x), *(a + 2 * b - 2 for a, b in zip(x.shape[1:4], padding, strict=True)), outer)
    spaces = Spaces(x, inner, outer)
    for samples, axes in parts(len(x), x.shape[1:4], padding, max(inner, outer)):
        given, made = spaces(samples, axes)
        turn("into", axes, x[window(samples, [axis.given for axis in axes])], given)
        torch.bmm(given, kernel, out=made)
        if bias is not None:
            made[ONES] += bias
        turn("out", axes, made, y[window(samples, [axis.made for axis in axes])])
    return y.movedim(-1, 1)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, *, padding: Sequence[int], wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` for its input and its weight, each if wanted."""
    x, grad = dense(x), dense(grad)
    kernel = kernel_points(weight).mT.contiguous()
    outer, inner = kernel.shape[1:]
    of_x = torch.zeros_like(x) if wanted[0] else None
    of_kernel = x.new_zeros(POINTS**3, inner, outer) if wanted[1] else None
    spaces = Spaces(x, inner, outer)
    for samples, axes in parts(len(x), x.shape[1:4], padding, max(inner, outer)):
        given, made = spaces(samples, axes)
        here = window(samples, [axis.given for axis in axes])
        turn("out, back", axes, grad[window(samples, [axis.made for axis in axes])], made)
        if of_kernel is not None:
            turn("into", axes, x[here], given)
            of_kernel.baddbmm_(given.mT, made)
        if of_x is not None:
            part = torch.empty_like(of_x[here], memory_format=torch.contiguous_format)
            turn("into, back", axes, torch.bmm(made, kernel, out=given), part)
            of_x[here] += part
    return (
        None if of_x is None else of_x.movedim(-1, 1),
        None if of_kernel is None else kernel_gradient(of_kernel),
    )


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return answer(x, weight, bias, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [bool(flag) for flag in ctx.needs_input_grad[:2]]
        if torch.is_grad_enabled():  # gradients of gradients
            ones = [1] * len(ctx.padding)
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, ones, list(ctx.padding), ones, False, [0, 0, 0], 1, [*wanted, False]
            )
        else:
            of_x, of_weight = gradients(grad, x, weight, padding=ctx.padding, wanted=wanted)
        of_bias = grad.sum(dim=(0, 2, 3, 4)) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None


def dense(x: Tensor) -> Tensor:
    """`(B, C, *S)` as `(B, *S, C)`, copied only if it is not so in memory."""
    return x.movedim(1, -1).contiguous()

"""Running a network over an image that is too large for it, in any rank.

The image is cut into overlapping tiles of one size, the network answers each, and the answers are
blended where they overlap. Weights and sums are the only arrays of full size, and the sum is divided in place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from voxelry.core.choice import unknown_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis

__all__ = ["BLENDS", "Job", "Window", "blend_profile", "blend_tiles", "cut", "predict_tiles", "tile_starts", "tiles"]

BLENDS = ("gaussian", "linear", "crop")

Window = tuple[slice, ...]
Job = tuple[int, Window]
"""The number of an image in its batch, and the tile of it."""


def tile_starts(size: int, tile: int, overlap: float, align: int = 1) -> list[int]:
    """First index of each tile along one axis of `size` voxels.

    Tiles cover every voxel, overlap by at least `overlap * tile` voxels and are spread evenly; the
    last one ends with the axis. A tile at least as long as the axis gives one start, 0.

    Args:
        overlap: fraction of a tile shared with the next, in [0, 1).
        align: starts but the last are multiples of this (a network's total stride), so that tiles see
            the same down-sampling grid as the whole image; the last, too, if the sizes are multiples.

    Raises:
        SettingError: a size is not positive, the overlap is outside [0, 1) or leaves no step.
    """
    if size < 1 or tile < 1 or align < 1:
        raise SettingError(f"tile_size: expected positive sizes, got {tile} for an axis of {size} (align {align})")
    if not 0 <= overlap < 1:
        raise SettingError(f"tile_overlap: expected a fraction in [0, 1), got {overlap}")
    if tile >= size:
        return [0]
    stride = math.floor(tile * (1 - overlap)) // align * align
    if stride < 1:
        raise SettingError(
            f"tile_size: {tile} voxels with overlap {overlap} leave no step that is a multiple of {align}"
        )
    last = size - tile
    count = math.ceil(last / stride) + 1
    starts = [min(last, round(last * step / (count - 1)) // align * align) for step in range(count)]
    # Rounding down to the alignment may open a gap before the end; step back to the plain stride then.
    if any(after - before > stride for before, after in itertools.pairwise([*starts[:-1], last])):
        starts = list(range(0, last, stride))
    return sorted({*starts, last})


def tiles(
    shape: Sequence[int], tile_size: int | Sequence[int], overlap: float = 0.5, align: int = 1
) -> Iterator[Window]:
    """Windows that cover a grid, last axis fastest; arguments as `tile_starts`."""
    sizes = [min(tile, size) for tile, size in zip(per_axis(tile_size, len(shape), "tile_size"), shape, strict=True)]
    starts = [tile_starts(size, tile, overlap, align) for size, tile in zip(shape, sizes, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + tile) for start, tile in zip(corner, sizes, strict=True))


def cut(image: Tensor, window: Sequence[slice]) -> Tensor:
    """A view of one window of an image, `(C, *spatial) -> (C, *window)`."""
    index: tuple[slice, ...] = (slice(None), *window)
    return image[index]


def blend_profile(
    size: int, margin: int, *, blend: str = "gaussian", at_start: bool = False, at_end: bool = False
) -> Tensor:
    """Weight of each voxel along one axis of a tile, `(size,)` float32, positive in the middle.

    Args:
        margin: voxels shared with the neighbours on each side.
        blend: `gaussian` falls smoothly from the centre (standard deviation an eighth of the tile,
            as nnU-Net does), `linear` ramps over the margin, `crop` drops the outer half of the margin
            and trusts the rest alike, so that borders of tiles leave no trace.
        at_start, at_end: the tile touches that border of the image, where it has no neighbour: no
            ramp and no crop there.

    Raises:
        SettingError: an unknown blend.
    """
    index = torch.arange(size, dtype=torch.float32)
    if blend == "gaussian":
        weights = torch.exp(-0.5 * ((index - (size - 1) / 2) / (size / 8)).square())
        return weights.clamp(min=1e-4)
    far = torch.full_like(index, float(size))
    distance = torch.minimum(far if at_start else index + 1, far if at_end else size - index)
    if blend == "linear":
        return (distance / (margin + 1)).clamp(max=1.0)
    if blend == "crop":
        return (distance > margin // 2).float()
    raise unknown_choice("blend", blend, BLENDS)


def predict_tiles(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    *,
    device: torch.device | str | None = None,
    **tiling: Any,
) -> Tensor:
    """The network's answer for a whole image, tile by tile, `(B, C, *spatial) -> (B, C', *spatial)`.

    With `blend="crop"`, tiles at multiples of the network's stride (`align`) and half of the overlap at
    least its receptive field, the answer is that of the network on the whole image.

    Args:
        image: may lie on another device than the network; tiles are moved one batch at a time.
        network: keeps the spatial shape.
        device: where the network works; by default that of the image.
        tiling: `tile_size` and what else `blend_tiles` takes.

    Raises:
        SettingError: sizes, overlap or blend make no sense, or the network changes the shape.
    """
    device = image.device if device is None else torch.device(device)

    def answer(jobs: Sequence[Job]) -> Tensor:
        return network(torch.stack([cut(image[sample], window) for sample, window in jobs]).to(device))

    return blend_tiles(answer, len(image), image.shape[2:], device=image.device, **tiling)


def blend_tiles(
    answer: Callable[[Sequence[Job]], Tensor],
    count: int,
    shape: Sequence[int],
    *,
    tile_size: int | Sequence[int],
    overlap: float = 0.5,
    blend: str = "gaussian",
    align: int = 1,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Answers for tiles, blended to `count` whole images, `(count, C', *shape)` float32.

    Unlike `predict_tiles`, what a tile is made of is the caller's matter: nothing but the sums has the full size.

    Args:
        answer: `[(image, window), ...] -> (len, C', *window)`, `batch_size` of them at a time.
        count: images.
        shape: of each of them.
        tile_size: voxels per axis; an axis shorter than its tile is taken whole.
        overlap: fraction of a tile shared with its neighbour, in [0, 1).
        blend: one of `BLENDS`.
        align: tiles begin at multiples of it.
        batch_size: tiles per call of `answer`.
        device: where the sums are.

    Raises:
        SettingError: sizes, overlap or blend make no sense, or an answer has another shape than its window.
    """
    windows = list(tiles(shape, tile_size, overlap, align))
    jobs = [(sample, window) for sample in range(count) for window in windows]
    total: Tensor | None = None
    weight = _total_weight(shape, windows, overlap, blend).to(device)
    for first in range(0, len(jobs), batch_size):
        chosen = jobs[first : first + batch_size]
        answers = answer(chosen).float()
        expected = tuple(part.stop - part.start for part in chosen[0][1])
        if tuple(answers.shape[2:]) != expected:
            raise SettingError(
                f"tile_size: the network turned {expected} into {tuple(answers.shape[2:])}; expected the same shape"
            )
        if total is None:
            total = torch.zeros(count, answers.shape[1], *shape, device=device)
        for (sample, window), part in zip(chosen, answers, strict=True):
            part = part.to(device) * _tile_weight(shape, window, overlap, blend).to(device)
            cut(total[sample], window).add_(part)
    assert total is not None  # an image has at least one tile
    return total.div_(weight)


def _tile_weight(shape: Sequence[int], window: Sequence[slice], overlap: float, blend: str) -> Tensor:
    weight = torch.ones(())
    for size, part in zip(shape, window, strict=True):
        length = part.stop - part.start
        profile = blend_profile(
            length,
            math.ceil(length * overlap),
            blend=blend,
            at_start=part.start == 0,
            at_end=part.stop == size,
        )
        weight = weight[..., None] * profile
    return weight


def _total_weight(shape: Sequence[int], windows: Sequence[Sequence[slice]], overlap: float, blend: str) -> Tensor:
    total = torch.zeros(*shape)
    for window in windows:
        total[tuple(window)] += _tile_weight(shape, window, overlap, blend)
    return total

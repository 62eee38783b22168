"""Axis-aligned boxes in any rank.

A box is `2 * ndim` numbers: all lows, then all highs, in array order (z, y, x or y, x), as continuous index
coordinates: voxel `i` spans `i - 0.5` to `i + 0.5`, and `high - low` is the extent in voxels. A box with a high
below its low, or with a coordinate that isn't a number, overlaps nothing.

Half precision and integers are computed in float32 or wider: the volume of a 41-voxel cube overflows float16.
float32 results equal torchvision's to the last bit at `ndim = 2`, for boxes with a volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis

__all__ = [
    "ORDERS",
    "boxes_ndim",
    "clip",
    "convert",
    "decode",
    "encode",
    "giou",
    "iou",
    "paired_iou",
    "pyramid_level",
    "valid",
    "volume",
    "widened",
]

_PAIRS = 1 << 22  # pairs at a time: 16 MB for each temporary

# Column orders by name: True where the axes are reversed (x first), and how lows and highs are interleaved.
_AXIS_REVERSED = {"voxelry": False, "torchvision": True, "medvision": True, "monai": False, "nndetection": False}
ORDERS = tuple(_AXIS_REVERSED)
"""Column orders that `convert` knows."""

_Weights = tuple[float | Sequence[float], float | Sequence[float]]


def boxes_ndim(boxes: Tensor) -> int:
    """Rank of the boxes `(..., 2 * ndim)`.

    Raises:
        SettingError: the last axis is absent, empty or odd.
    """
    if boxes.ndim < 1 or boxes.shape[-1] % 2 or boxes.shape[-1] == 0:
        raise SettingError(f"boxes: expected (..., 2 * ndim), lows then highs, got shape {tuple(boxes.shape)}")
    return boxes.shape[-1] // 2


def widened(boxes: Tensor) -> Tensor:
    """The boxes in a type their volumes fit in: float64 stays, 64-bit integers become float64, the rest float32."""
    wide = boxes.dtype in (torch.float64, torch.int64)
    return boxes.to(torch.float64 if wide else torch.float32)


def volume(boxes: Tensor) -> Tensor:
    """Volume of each box in voxels, `(..., 2 * ndim) -> (...)`, float32 or float64; inverted boxes count as empty."""
    ndim = boxes_ndim(boxes)
    return _volume(widened(boxes), ndim)


def _volume(boxes: Tensor, ndim: int) -> Tensor:
    result = (boxes[..., ndim] - boxes[..., 0]).clamp(min=0)
    for axis in range(1, ndim):
        result = result * (boxes[..., ndim + axis] - boxes[..., axis]).clamp(min=0)
    return result


def _intersection(boxes: Tensor, others: Tensor, ndim: int) -> Tensor:
    """Common volume after broadcasting; one axis at a time, so that no `(N, M, ndim)` array is made."""
    result: Tensor | None = None
    for axis in range(ndim):
        low = torch.maximum(boxes[..., axis], others[..., axis])
        extent = (torch.minimum(boxes[..., ndim + axis], others[..., ndim + axis]) - low).clamp(min=0)
        result = extent if result is None else result * extent
    assert result is not None
    return result


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 where that isn't a number: an empty whole, or coordinates that aren't finite."""
    if not (torch.is_grad_enabled() and (part.requires_grad or whole.requires_grad)):
        return torch.div(part, whole).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    sound = (whole > 0) & torch.isfinite(whole) & torch.isfinite(part)  # so that the gradient is a number, too
    return torch.where(sound, part, 0) / torch.where(sound, whole, 1)


def _shared(boxes: Tensor, others: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Common volume and that of the union, after broadcasting."""
    inner = _intersection(boxes, others, ndim)
    return inner, _volume(boxes, ndim) + _volume(others, ndim) - inner


def _paired(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, int]:
    ndim = boxes_ndim(boxes)
    if boxes_ndim(others) != ndim:
        raise SettingError(f"boxes: expected one rank, got {ndim} and {boxes_ndim(others)}")
    boxes, others = widened(boxes), widened(others)
    dtype = torch.promote_types(boxes.dtype, others.dtype)
    return boxes.to(dtype), others.to(dtype), ndim


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair, `(N, 2 * ndim), (M, 2 * ndim) -> (N, M)` in [0, 1].

    float64 if either is, otherwise float32. Empty inputs give an empty matrix of the right shape; a pair with an
    empty, inverted, infinite or NaN box gives 0. Beyond the result, memory is bounded.

    Raises:
        SettingError: the boxes differ in rank or are of odd length.
    """
    boxes, others, ndim = _paired(boxes, others)
    rows = max(1, _PAIRS // max(1, len(others)))
    if len(boxes) <= rows or (torch.is_grad_enabled() and (boxes.requires_grad or others.requires_grad)):
        return _ratio(*_shared(boxes[:, None], others[None], ndim))
    result = boxes.new_empty(len(boxes), len(others))
    for start in range(0, len(boxes), rows):
        result[start : start + rows] = _ratio(*_shared(boxes[start : start + rows, None], others[None], ndim))
    return result


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of box `k` with other `k`: `(..., 2 * ndim)` twice, broadcast `-> (...)`.

    Raises:
        SettingError: the boxes differ in rank or are of odd length.
    """
    return _ratio(*_shared(*_paired(boxes, others)))


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of box `k` with other `k` in (-1, 1]: `(..., 2 * ndim)` twice, broadcast `-> (...)`.

    IoU less the part of the common hull that neither covers (Rezatofighi et al. 2019, arXiv:1902.09630, eq. 1);
    differentiable. A hull without volume, or not finite, takes nothing off.

    Raises:
        SettingError: the boxes differ in rank or are of odd length.
    """
    boxes, others, ndim = _paired(boxes, others)
    inner, union = _shared(boxes, others, ndim)
    low, high = torch.minimum(boxes, others)[..., :ndim], torch.maximum(boxes, others)[..., ndim:]
    hull = _volume(torch.cat([low, high], dim=-1), ndim)
    return _ratio(inner, union) - _ratio(hull - union, hull)


def clip(boxes: Tensor, shape: Sequence[int], *, low: float = -0.5) -> Tensor:
    """Boxes cut to the image, `(..., 2 * ndim) -> (..., 2 * ndim)`: each coordinate into `[low, size + low]`.

    `low` is the coordinate of the image's edge: -0.5 for voxel centres at integers, 0.0 as in torchvision.

    Raises:
        SettingError: `shape` has another rank than the boxes.
    """
    ndim = boxes_ndim(boxes)
    sizes = per_axis(shape, ndim, "shape")
    upper = torch.tensor([size + low for size in sizes] * 2, dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=low), upper)


def valid(boxes: Tensor, min_size: float = 0.0) -> Tensor:
    """Which boxes are finite and at least `min_size` voxels long on every axis, `(..., 2 * ndim) -> (...)` bool."""
    ndim = boxes_ndim(boxes)
    wide = widened(boxes)
    long_enough = (wide[..., ndim:] - wide[..., :ndim] >= min_size).all(dim=-1)
    return long_enough & torch.isfinite(wide).all(dim=-1)


def _centre_and_extent(boxes: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    extent = boxes[..., ndim:] - boxes[..., :ndim]
    return boxes[..., :ndim] + 0.5 * extent, extent


def _weight_tensors(weights: _Weights, ndim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    centre, size = weights
    return (
        like.new_tensor(per_axis(centre, ndim, "weights, centre")),
        like.new_tensor(per_axis(size, ndim, "weights, size")),
    )


def encode(targets: Tensor, references: Tensor, weights: _Weights = (1.0, 1.0)) -> Tensor:
    """What takes each reference box to its target, `(K, 2 * ndim)` twice `-> (K, 2 * ndim)`, float32 or float64.

    Per axis the shift of the centre in units of the reference's extent, then per axis the logarithm of the
    ratio of extents, times `weights` = (centre, size), each a number or one per axis (Girshick et al. 2014,
    arXiv:1311.2524, appendix C). A row with a box without volume, or not finite, is NaN: see `valid`.

    Raises:
        SettingError: the boxes differ in rank, or weights in length.
    """
    targets, references, ndim = _paired(targets, references)
    at, extent = _centre_and_extent(references, ndim)
    target_at, target_extent = _centre_and_extent(targets, ndim)
    centre, size = _weight_tensors(weights, ndim, references)
    sound = ((extent > 0) & (target_extent > 0)).all(dim=-1, keepdim=True)
    deltas = torch.cat([centre * (target_at - at) / extent, size * torch.log(target_extent / extent)], dim=-1)
    return torch.where(sound & torch.isfinite(deltas).all(dim=-1, keepdim=True), deltas, torch.nan)


def decode(
    deltas: Tensor,
    references: Tensor,
    weights: _Weights = (1.0, 1.0),
    *,
    max_log_size: float = math.log(1000 / 16),
) -> Tensor:
    """The boxes that `deltas` make of their references: the inverse of `encode`, float32 or float64.

    Args:
        deltas: `(K, 2 * ndim)`, or `(K, ..., 2 * ndim)` with several boxes per reference, one per class say.
        references: `(K, 2 * ndim)`.
        weights: those given to `encode`.
        max_log_size: growth of an axis is held below `exp(max_log_size)`; shrinking isn't.

    Returns:
        Boxes in the shape of `deltas`.

    Raises:
        SettingError: the boxes differ in rank or number, or weights in length.
    """
    deltas, references, ndim = _paired(deltas, references)
    if deltas.shape[:1] != references.shape[:1] or references.ndim != 2:
        raise SettingError(f"deltas: expected ({len(references)}, ..., {2 * ndim}), got {tuple(deltas.shape)}")
    references = references.reshape(len(references), *(1,) * (deltas.ndim - 2), 2 * ndim)
    at, extent = _centre_and_extent(references, ndim)
    centre, size = _weight_tensors(weights, ndim, references)
    middle = deltas[..., :ndim] / centre * extent + at
    half = 0.5 * (torch.exp((deltas[..., ndim:] / size).clamp(max=max_log_size)) * extent)
    return torch.cat([middle - half, middle + half], dim=-1)


def _columns(order: str, ndim: int) -> list[int]:
    """Column of ours that each column of `order` holds."""
    check_choice("order", order, ORDERS)
    axes = range(ndim)[::-1] if _AXIS_REVERSED[order] else range(ndim)
    columns = [*axes, *(ndim + axis for axis in axes)]
    if order == "nndetection":  # the third axis was put behind the highs of the first two
        columns = [0, 1, ndim, ndim + 1, *(column for axis in range(2, ndim) for column in (axis, ndim + axis))]
    return columns


def convert(boxes: Tensor, source: str, target: str, *, ndim: int) -> Tensor:
    """Boxes with their columns in another order, `(..., 2 * ndim) -> (..., 2 * ndim)`.

    | order | columns, for an array with axes z, y, x |
    |---|---|
    | `voxelry` | z, y, x lows, then highs |
    | `torchvision`, `medvision` | x, y, z lows, then highs |
    | `monai` | the array's axes: first, second, third lows, then highs |
    | `nndetection` | first and second axis: lows, highs; then low and high of the third |

    Only the order changes. Programs also differ in where voxel 0 begins: at -0.5 here, at 0 in MONAI and
    nnDetection; what their files hold must be moved by half a voxel besides.

    Raises:
        SettingError: an unknown order, or boxes of another rank.
    """
    if boxes_ndim(boxes) != ndim:
        raise SettingError(f"boxes: expected {2 * ndim} columns for ndim={ndim}, got {boxes.shape[-1]}")
    given, wanted = _columns(source, ndim), _columns(target, ndim)
    return boxes[..., [given.index(column) for column in wanted]]


def pyramid_level(
    boxes: Tensor, *, k_min: int, k_max: int, canonical_scale: float = 224, canonical_level: float = 4
) -> Tensor:
    """Level of a feature pyramid that each box is read from, `(K, 2 * ndim) -> (K,)` int64 in [k_min, k_max].

    `floor(canonical_level + log2(volume ** (1 / ndim) / canonical_scale) + 1e-6)`, clamped (Lin et al. 2017,
    arXiv:1612.03144, eq. 1, with the cube root for volumes). Boxes without volume, or not finite, go to `k_min`.

    Raises:
        SettingError: `k_max < k_min` or a scale that isn't positive.
    """
    if k_max < k_min or not canonical_scale > 0:
        raise SettingError(
            f"levels: expected k_min <= k_max and a scale above 0, got {k_min}, {k_max}, {canonical_scale}"
        )
    size = volume(boxes) ** (1 / boxes_ndim(boxes))
    # The tolerance sends a size on the border up, whatever its root was rounded to.
    level = torch.floor(canonical_level + torch.log2(size / canonical_scale) + 1e-6)
    return level.nan_to_num(nan=k_min, posinf=k_min, neginf=k_min).clamp(k_min, k_max).to(torch.int64)

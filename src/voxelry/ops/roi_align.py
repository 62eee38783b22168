"""RoIAlign in any rank: features of boxes at a fixed size (He et al. 2017, arXiv:1703.06870, section 3).

A box is cut into bins, each bin is sampled on a regular grid by linear interpolation, and a bin's samples
are averaged. All of it is separable: along each axis a RoI is a small matrix from cells to bins, and the
result is the features times one matrix per axis. Borders and counts are those of torchvision's compiled
kernels: a sample up to one cell outside takes the value at the edge, one further out counts as 0. Its Python
version, which runs where those are missing, takes the edge's value however far out: `outside="edge"`.

Boxes are `(K, 2 * ndim)`, lows then highs in array order, in index coordinates (the centre of voxel i is at
i). A feature coordinate is a box coordinate times `scale`; nothing is shifted unless `aligned`.

On the CPU Numba kernels do the work, on a GPU Triton's; plain PyTorch does the same everywhere. No gradient
reaches the boxes. The backward pass is bitwise repeatable: every cell adds its RoIs in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.ops.kernels.dispatch import Backend, choose

__all__ = ["roi_align", "roi_masks"]

# Elements of the largest intermediate of the plain version; more RoIs than fit are done in chunks.
_CHUNK = 1 << 25
# Samples of one bin along one axis where those outside can't be left out.
_LONGEST = 4096
# Where no image is.
_FAR = -float(1 << 20)


def roi_align(
    features: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    output_size: int | Sequence[int],
    *,
    scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    outside: Literal["zero", "edge"] = "zero",
    channels_last: bool = False,
) -> Tensor:
    """Features of each box at `output_size`, differentiable with respect to the features.

    Args:
        features: `(B, C, *S)` float32, float64, float16 or bfloat16 (half precision is summed in float32), finite.
        boxes: `(K, 2 * ndim)` index coordinates before scaling. They may lie outside (zeros come back).
        batch_index: `(K,)` integer, the image of each box, 0 to B - 1.
        output_size: bins, one number or one per axis.
        scale: cells per voxel, one number or one per axis.
        sampling_ratio: samples per bin and axis; 0 or less takes `ceil(side / bins)`, for each RoI and axis.
        aligned: shift by half a cell (for coordinates whose voxel i spans i to i + 1) and let RoIs be smaller
            than a cell; otherwise a side counts as one cell at least.
        outside: what a sample more than a cell outside counts as.
        channels_last: whether the channels of the answer lie beside each other in memory.

    Returns:
        `(K, C, *output_size)` of the features' type.

    Raises:
        SettingError: shapes that don't fit together, a box with NaN or infinity, an image that isn't there,
            adaptive sampling of a box so large that repeating the edge would take forever. On a GPU values are
            not looked at: such a box, or one of such an image, reads what is far outside.
    """
    if outside not in ("zero", "edge"):
        raise SettingError(f'outside: expected "zero" or "edge", got {outside!r}')
    ndim = check_ndim(features.ndim - 2)
    bins = per_axis(output_size, ndim, "output_size")
    scales = per_axis(scale, ndim, "scale")
    if not features.is_floating_point():
        raise SettingError(f"features: expected floating-point values, got {features.dtype}")
    boxes, batch = _checked(features, boxes, batch_index, bins)
    if any(not (factor > 0 and math.isfinite(factor)) for factor in scales):
        raise SettingError(f"scale: expected positive numbers, got {scales}")
    kind = torch.promote_types(features.dtype, torch.float32)
    values = features.to(kind)
    points, share = _sample(
        boxes.to(kind), features.shape[2:], bins, scales, sampling_ratio, aligned, outside == "edge"
    )
    name = choose(features)
    if name == "torch" or len(boxes) == 0:
        found = _in_torch(values, points, share, batch, bins).to(features.dtype)
        return _channels_beside(found) if channels_last else found
    while values.ndim < 5:  # a plane is a volume of depth one
        values = values.unsqueeze(2)
        points = [torch.zeros(len(boxes), 1, 1, dtype=kind, device=values.device), *points]
        share = torch.cat((torch.ones_like(share[:, :1]), share), dim=1)
    out = _RoIAlign.apply(values, batch, share, (name, channels_last), *points)
    return out.reshape(*out.shape[:2], *bins).to(features.dtype)


def roi_masks(
    masks: Tensor,
    ids: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    size: int | Sequence[int],
) -> Tensor:
    """What part of each bin of a box its instance fills: `roi_align` of `masks == id`, without dense masks.

    Scale 1, adaptive sampling, not aligned, as torchvision makes the targets of its mask loss.

    Args:
        masks: `(B, *S)` integer instance ids.
        ids: `(K,)` the id in each box.
        boxes: `(K, 2 * ndim)` index coordinates.
        batch_index: `(K,)` the image of each box.
        size: bins, one number or one per axis.

    Returns:
        `(K, *size)` float32 in [0, 1].

    Raises:
        SettingError: as `roi_align`; masks that aren't of an integer type.
    """
    ndim = check_ndim(masks.ndim - 1)
    bins = per_axis(size, ndim, "size")
    if masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
        raise SettingError(f"masks: expected integer instance ids, got {masks.dtype}")
    boxes, batch = _checked(masks.unsqueeze(1), boxes, batch_index, bins)
    if ids.shape != batch.shape:
        raise SettingError(f"ids: expected one per box, {len(boxes)}, got shape {tuple(ids.shape)}")
    ids = ids.to(masks.device, torch.int64)
    points, share = _sample(boxes.float(), masks.shape[1:], bins, (1.0,) * ndim, 0, False, False)
    if choose(masks) != "numba" or len(boxes) == 0:
        return _masks_in_torch(masks, ids, points, share, batch, bins)
    from voxelry.ops.kernels.roi_align import roi_masks_forward

    while masks.ndim < 4:
        masks = masks.unsqueeze(1)
        points = [torch.zeros(len(boxes), 1, 1), *points]
        share = torch.cat((torch.ones_like(share[:, :1]), share), dim=1)
    out = torch.empty(len(boxes), *(axis.shape[1] for axis in points))
    inputs = [tensor.numpy() for tensor in (masks, ids, batch, *points, share, out)]
    _share_out(partial(roi_masks_forward, *inputs), len(boxes), 1)
    return out.reshape(len(boxes), *bins)


def _checked(features: Tensor, boxes: Tensor, batch_index: Tensor, bins: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Boxes and image indices on the features' device, int64; one look at their values for all checks.

    On a GPU a look would wait for all that is under way: there, boxes that can't be read are put far outside.
    """
    ndim = features.ndim - 2
    if boxes.ndim != 2 or boxes.shape[1] != 2 * ndim:
        raise SettingError(
            f"boxes: expected shape (K, {2 * ndim}) for features of rank {ndim}, got {tuple(boxes.shape)}"
        )
    if batch_index.shape != boxes.shape[:1] or batch_index.is_floating_point():
        raise SettingError(
            f"batch_index: expected {len(boxes)} integers, one per box, "
            f"got {batch_index.dtype} of shape {tuple(batch_index.shape)}"
        )
    if any(not isinstance(count, int) or count < 1 for count in bins):
        raise SettingError(f"output_size: expected positive whole numbers, got {tuple(bins)}")
    if 0 in features.shape[2:]:
        raise SettingError(f"features: expected at least one cell per axis, got shape {tuple(features.shape)}")
    boxes = boxes.detach().to(features.device)
    batch = batch_index.detach().to(features.device, torch.int64)
    if len(boxes):
        finite = boxes.isfinite().all(dim=1)
        known = (batch >= 0) & (batch < features.shape[0])
        if not _may_look(features):
            return boxes.where((finite & known)[:, None], _FAR), batch.where(known, 0)
        if not bool((finite & known).all()):
            if not bool(finite.all()):
                place = int(finite.logical_not().nonzero()[0])
                raise SettingError(f"boxes: expected finite numbers, box {place} is {boxes[place].tolist()}")
            place = int(known.logical_not().nonzero()[0])
            raise SettingError(
                f"batch_index: expected 0 to {features.shape[0] - 1}, got {int(batch[place])} for box {place}"
            )
    return boxes, batch


def _may_look(x: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return x.device.type == "cpu"


def _sample(
    boxes: Tensor,
    shape: Sequence[int],
    bins: Sequence[int],
    scales: Sequence[float],
    ratio: int,
    aligned: bool,
    edge: bool,
) -> tuple[list[Tensor], Tensor]:
    """Where the bins are sampled.

    Returns:
        for each axis the coordinates `(K, bins, samples)`, clamped to the cells, -1 where a sample doesn't
        count; and the weight of one sample along each axis `(K, ndim)`. The samples of a bin that are certain
        to lie outside are left out, so that a box of any size costs no more than the image.
    """
    ndim = len(shape)
    points, shares = [], []
    for axis in range(ndim):
        shift = 0.5 if aligned else 0.0
        low = boxes[:, axis] * scales[axis] - shift
        side = boxes[:, ndim + axis] * scales[axis] - shift - low
        if not aligned:
            side = side.clamp(min=1)
        step = side / bins[axis]
        count = torch.full_like(side, ratio) if ratio > 0 else step.ceil().clamp(min=0)
        divisor = count.clamp(min=1)
        start = low[:, None] + torch.arange(bins[axis], dtype=low.dtype, device=low.device) * step[:, None]
        first = torch.zeros_like(start)
        longest = ratio
        if ratio <= 0 and edge:
            longest = int(count.clamp(max=_LONGEST + 1).max()) if len(boxes) else 0
            if longest > _LONGEST:
                raise SettingError(f'boxes: expected bins of at most {_LONGEST} cells for outside="edge"')
        elif ratio <= 0:
            pace = (step / divisor)[:, None].clamp(min=torch.finfo(step.dtype).tiny)
            most = count[:, None].expand_as(start)
            first = torch.minimum(((-1 - start) / pace - 1.5).floor().clamp(min=0), most)
            last = torch.minimum(((shape[axis] - start) / pace + 1.5).ceil().clamp(min=0), most)
            longest = int((last - first).nan_to_num(nan=0).max()) if len(boxes) else 0
        index = first[..., None] + torch.arange(max(longest, 0), dtype=low.dtype, device=low.device)
        where = start[..., None] + (index + 0.5) * step[:, None, None] / divisor[:, None, None]
        counts = index < count[:, None, None]
        if not edge:
            counts &= (where >= -1) & (where <= shape[axis])
        points.append(torch.where(counts, where.clamp(0, shape[axis] - 1), -1.0))
        shares.append(1 / divisor)
    return points, torch.stack(shares, dim=1)


def _matrix(points: Tensor, share: Tensor, size: int) -> Tensor:
    """The map from cells to bins of each RoI along one axis, `(K, bins, size)`."""
    cells = torch.arange(size, device=points.device)
    matrix = points.new_zeros(*points.shape[:2], size)
    for sample in range(points.shape[2]):
        point = points[:, :, sample, None]
        low = point.floor()
        part = point - low
        weight = torch.where(cells == low, 1 - part, 0) + torch.where(cells == low + 1, part, 0)
        matrix += torch.where(point >= 0, weight, 0)
    return matrix * share[:, None, None]


def _contract(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """`values` `(k, C, *S)` times the matrices `(k, bins, S)` along each axis but the last."""
    for axis, matrix in enumerate(matrices):
        moved = values.movedim(2 + axis, -1)
        lead = [1] * (moved.ndim - 3)
        values = (moved @ matrix.mT.reshape(len(matrix), *lead, *matrix.mT.shape[1:])).movedim(-1, 2 + axis)
    return values


def _in_torch(features: Tensor, points: Sequence[Tensor], share: Tensor, batch: Tensor, bins: Sequence[int]) -> Tensor:
    """The reference: the features times one matrix per axis, the last axis first, in chunks of RoIs."""
    shape = features.shape[2:]
    if len(batch) == 0:
        return features.reshape(-1)[:0].reshape(0, features.shape[1], *bins)
    parts, places = [], []
    chunk = max(1, _CHUNK // (features.shape[1] * math.prod(shape[:-1]) * bins[-1]))
    with torch.autocast(features.device.type, enabled=False):
        for image in range(features.shape[0]):
            for chosen in (batch == image).nonzero()[:, 0].split(chunk):
                if len(chosen) == 0:
                    continue
                matrices = [
                    _matrix(axis[chosen], share[chosen, number], size)
                    for number, (axis, size) in enumerate(zip(points, shape, strict=True))
                ]
                first = torch.tensordot(features[image], matrices[-1], dims=([-1], [-1]))  # (C, ..., k, bins)
                parts.append(_contract(first.movedim(-2, 0), matrices[:-1]))
                places.append(chosen)
    return torch.cat(parts)[torch.cat(places).argsort()]


def _masks_in_torch(
    masks: Tensor, ids: Tensor, points: Sequence[Tensor], share: Tensor, batch: Tensor, bins: Sequence[int]
) -> Tensor:
    """Windows around the boxes, as large as the largest in their chunk, times one matrix per axis."""
    shape = masks.shape[1:]
    result = torch.zeros(len(ids), *bins, device=masks.device)
    if len(ids) == 0:
        return result
    starts, extents = [], []
    for axis, size in zip(points, shape, strict=True):
        low = torch.where(axis >= 0, axis, size).flatten(1).amin(dim=1).floor() if axis.shape[2] else axis.new_zeros(0)
        high = axis.flatten(1).amax(dim=1).floor() if axis.shape[2] else axis.new_zeros(0)
        if len(low) == 0:
            return result  # every sample lies outside
        extent = int((high + 2 - low).clamp(min=1).max())
        extents.append(min(extent, size))
        starts.append(low.clamp(max=size - extents[-1]).long())
    chunk = max(1, _CHUNK // math.prod(extents))
    for chosen in torch.arange(len(ids), device=masks.device).split(chunk):
        index: list[Any] = [batch[chosen].reshape(-1, *[1] * len(shape))]
        matrices = []
        for number, (axis, start, extent) in enumerate(zip(points, starts, extents, strict=True)):
            cells = start[chosen, None] + torch.arange(extent, device=masks.device)
            index.append(cells.reshape(len(chosen), *[extent if other == number else 1 for other in range(len(shape))]))
            moved = torch.where(axis[chosen] >= 0, axis[chosen] - start[chosen, None, None], -1.0)
            matrices.append(_matrix(moved, share[chosen, number], extent))
        window = masks[tuple(index)] == ids[chosen].reshape(-1, *[1] * len(shape))
        with torch.autocast(masks.device.type, enabled=False):
            result[chosen] = _contract(window.unsqueeze(1).float(), matrices)[:, 0]
    return result


def _share_out(work: Callable[[int, int], None], count: int, grain: int) -> None:
    """`work(start, stop)` over `range(count)`, in pieces of a multiple of `grain`, on PyTorch's number of threads."""
    pieces = min(torch.get_num_threads(), -(-count // grain))
    if pieces <= 1:
        work(0, count)
        return
    length = -(-count // (pieces * grain)) * grain
    with ThreadPoolExecutor(pieces) as pool:
        list(pool.map(lambda start: work(start, min(start + length, count)), range(0, count, length)))


def _run(name: Backend, direction: str, given: Tensor, batch: Tensor, share: Tensor, points: Any, out: Tensor) -> None:
    """One direction of one backend, on data of rank 3."""
    if name == "triton":
        from voxelry.ops.kernels import triton_roi_align as triton

        matrices = [
            _matrix(axis, share[:, number], size)
            for number, (axis, size) in enumerate(
                zip(points, (given if direction == "forward" else out).shape[2:], strict=True)
            )
        ]
        getattr(triton, direction)(given, batch, matrices, out)
        return
    from voxelry.ops.kernels import roi_align as numba

    kernel = numba.roi_align_forward if direction == "forward" else numba.roi_align_backward
    values, numbers, *inputs = (tensor.numpy() for tensor in (given, batch, *points, share, out))
    for image in range((given if direction == "forward" else out).shape[0]):
        (rois,) = (numbers == image).nonzero()
        if len(rois):
            _share_out(partial(kernel, values, rois, *inputs, image), given.shape[1], numba.LANES)


def _channels_beside(x: Tensor) -> Tensor:
    """The same `(B, C, *S)` with the channels of a cell beside each other in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """Memory for `(B, C, *S)`."""
    if channels_last:
        return like.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return like.new_empty(shape)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, batch: Tensor, share: Tensor, how: tuple[Backend, bool], *points: Tensor
    ) -> Tensor:
        ctx.save_for_backward(batch, share, *points)
        ctx.name, channels_last = how
        ctx.shape, ctx.channels_last = features.shape, features.movedim(1, -1).is_contiguous()
        out = _empty(features, (len(batch), features.shape[1], *(axis.shape[1] for axis in points)), channels_last)
        _run(ctx.name, "forward", features.detach(), batch, share, points, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        batch, share, *points = ctx.saved_tensors
        out = _empty(grad, ctx.shape, ctx.channels_last).zero_()
        _run(ctx.name, "backward", grad.detach(), batch, share, points, out)
        return out, None, None, None, *(None for _ in points)

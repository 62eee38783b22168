"""RoIAlign on the CPU: separable along the axes, with the channels innermost while it sums.

All arrays are of rank 3 (`voxelry.ops.roi_align` lifts rank 2 to depth one). Eight channels of an image at a
time are turned to channels last, in one pass over the part where its RoIs lie; then each RoI is reduced along
z, y and x. The backward pass is the same, transposed, and adds the RoIs in their order. A call owns some
channels of one image: no two calls write one number, so threads share the work by channels, and the sums do
not depend on how many threads there are.

`rois` are the numbers of the RoIs to do, all of one image. `pz`, `py` and `px` are `(K, bins, samples)`: where
each axis is sampled, in cells, clamped to the image; below zero where a sample doesn't count. `share` is
`(K, 3)`: the weight of one sample along each axis.

Working arrays are flat, and inner loops neither cut views nor call functions: both count references, which costs
more than summing a row. Indices there are unsigned: the check for negative ones would prevent vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelry.ops.kernels import jit

__all__ = ["LANES", "roi_align_backward", "roi_align_forward", "roi_masks_forward"]

# Channels at a time: one vector register of float32, and a working copy that the last-level cache can hold.
LANES = 8
# Numbers between the rows of working arrays: rows a power of two apart would share few places of the cache.
_GAP = 16


@jit
def _axis(points: Any, share: Any, weights: Any, cells: Any, band: Any) -> int:
    """What one RoI needs along one axis, from its points `(bins, samples)`.

    Fills `weights` `(bins, used)`, the indices `cells` of the cells that are used, and `band` `(bins, 2)`,
    the range of used cells of each bin; returns how many are used.
    """
    bins, samples = points.shape
    size = cells.size
    one = weights.dtype.type(1)
    low, high = size, 0
    for p in range(bins):
        for t in range(samples):
            if points[p, t] >= 0:
                low = min(low, int(points[p, t]))
                high = max(high, min(int(points[p, t]) + 2, size))
    for p in range(bins):
        for cell in range(low, high):
            weights[p, cell] = 0
        for t in range(samples):
            point = points[p, t]
            if point >= 0:
                cell = int(point)
                part = weights.dtype.type(point - cell)
                weights[p, cell] += (one - part) * share
                if part > 0:
                    weights[p, cell + 1] += part * share
    band[:] = 0
    used = 0
    for cell in range(low, high):
        wanted = False
        for p in range(bins):
            weight = weights[p, cell]
            weights[p, used] = weight
            if weight != 0:
                if band[p, 1] == 0:
                    band[p, 0] = used
                band[p, 1] = used + 1
                wanted = True
        if wanted:
            cells[used] = cell
            used += 1
    return used


@jit
def _axes(points: Any, share: Any, rois: Any, size: int) -> tuple[Any, Any, Any, Any, int, int]:
    """`_axis` of all `rois` along one axis of `size` cells.

    Returns:
        `weights` `(R, bins, size)`, `cells` `(R, size)` and `band` `(R, bins, 2)`, filled as far as they are used;
        the number of cells used `(R,)`; the first cell of all, from which `cells` count, and how many there are up to
        the last of all.
    """
    bins = points.shape[1]
    weights = np.empty((rois.size, bins, size), points.dtype)
    cells = np.empty((rois.size, size), np.int64)
    band = np.zeros((rois.size, bins, 2), np.int64)
    used = np.zeros(rois.size, np.int64)
    first, end = size, 0
    for n in range(rois.size):
        used[n] = _axis(points[rois[n]], share[rois[n]], weights[n], cells[n], band[n])
        if used[n] > 0:
            first, end = min(first, cells[n, 0]), max(end, cells[n, used[n] - 1] + 1)
    for n in range(rois.size):
        for i in range(used[n]):
            cells[n, i] -= first
    return weights, cells, band, used, first, max(end - first, 0)


@jit
def _reduce(axis: Any, rows: Any, start: int, stride: int, target: Any, place: int, step: int, count: int) -> None:
    """Rows of cells to rows of bins: for each bin that has cells, the weighted sum of their rows.

    A row is `count` numbers. Cell 0's begins at `start` in `rows`, the next ones every `stride`; bin 0's begins at
    `place` in `target`, the next ones every `step`. `axis` is `weights, cells, band` of one RoI.
    """
    weights, cells, band = axis
    many = np.uint64(count)
    for bin in range(band.shape[0]):
        low, high = band[bin, 0], band[bin, 1]
        if high == low:
            continue
        t = np.uint64(place + bin * step)
        a, wa = np.uint64(start + cells[low] * stride), weights[bin, low]
        if high - low == 1:
            for n in range(many):
                target[t + n] = wa * rows[a + n]
            continue
        b, wb = np.uint64(start + cells[low + 1] * stride), weights[bin, low + 1]
        if high - low == 2:
            for n in range(many):
                target[t + n] = wa * rows[a + n] + wb * rows[b + n]
            continue
        c, wc = np.uint64(start + cells[low + 2] * stride), weights[bin, low + 2]
        for n in range(many):
            target[t + n] = wa * rows[a + n] + wb * rows[b + n] + wc * rows[c + n]
        for k in range(low + 3, high):
            a, wa = np.uint64(start + cells[k] * stride), weights[bin, k]
            for n in range(many):
                target[t + n] += wa * rows[a + n]


@jit
def _spread(axis: Any, source: Any, place: int, step: int, rows: Any, start: int, stride: int, count: int) -> None:
    """The transpose of `_reduce`: rows of bins in `source` are added to the rows of their cells in `rows`."""
    weights, cells, band = axis
    many = np.uint64(count)
    for bin in range(band.shape[0]):
        s = np.uint64(place + bin * step)
        for k in range(band[bin, 0], band[bin, 1]):
            a, weight = np.uint64(start + cells[k] * stride), weights[bin, k]
            for n in range(many):
                rows[a + n] += weight * source[s + n]


@jit
def _turn(features: Any, image: int, first: int, last: int, low: Any, copy: Any, sizes: Any) -> None:
    """Channels `first` to `last` of the block of `sizes` cells at `low`, channels innermost, into `copy`.

    Lanes beyond `last` repeat it. Eight channels are read at a time, so that eight lines of memory are on their way.
    """
    b, c, d, e = min(first + 1, last), min(first + 2, last), min(first + 3, last), min(first + 4, last)
    f, g, h = min(first + 5, last), min(first + 6, last), min(first + 7, last)
    line = sizes[2] * LANES + _GAP
    for z in range(low[0], low[0] + sizes[0]):
        for y in range(low[1], low[1] + sizes[1]):
            at = np.uint64(((z - low[0]) * (sizes[1] + 1) + y - low[1]) * line)
            for x in range(np.uint64(low[2]), np.uint64(low[2] + sizes[2])):
                va, vb = features[image, first, z, y, x], features[image, b, z, y, x]
                vc, vd = features[image, c, z, y, x], features[image, d, z, y, x]
                ve, vf = features[image, e, z, y, x], features[image, f, z, y, x]
                vg, vh = features[image, g, z, y, x], features[image, h, z, y, x]
                copy[at], copy[at + np.uint64(1)], copy[at + np.uint64(2)], copy[at + np.uint64(3)] = va, vb, vc, vd
                at += np.uint64(4)
                copy[at], copy[at + np.uint64(1)], copy[at + np.uint64(2)], copy[at + np.uint64(3)] = ve, vf, vg, vh
                at += np.uint64(4)


@jit
def roi_align_forward(
    features: Any, rois: Any, pz: Any, py: Any, px: Any, share: Any, out: Any, image: int, start: int, stop: int
) -> None:
    """RoIs of one image of `features` `(B, C, D, H, W)` into `out` `(K, C, P, Q, R)`, channels `start` to `stop`."""
    kind = features.dtype
    bins_z, bins_y, bins_x = out.shape[2:]
    wz, cz, bz, nz, z0, depth = _axes(pz, share[:, 0], rois, features.shape[2])
    wy, cy, by, ny, y0, height = _axes(py, share[:, 1], rois, features.shape[3])
    wx, cx, bx, nx, x0, width = _axes(px, share[:, 2], rois, features.shape[4])
    line = width * LANES + _GAP
    plane = (height + 1) * line
    copy, planes = np.empty(depth * plane, kind), np.empty(bins_z * plane, kind)
    lines, found = np.empty(bins_y * line, kind), np.empty(bins_x * LANES, kind)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        _turn(features, image, first, first + count - 1, (z0, y0, x0), copy, (depth, height, width))
        for n in range(rois.size):
            k = rois[n]
            out[k, first : first + count] = 0
            if nz[n] * ny[n] * nx[n] == 0:
                continue
            along_z, along_y, along_x = (wz[n], cz[n], bz[n]), (wy[n], cy[n], by[n]), (wx[n], cx[n], bx[n])
            low = cx[n, 0] * LANES
            length = (cx[n, nx[n] - 1] + 1) * LANES - low
            for j in range(ny[n]):  # all bins at one y: what they read stays in the nearest cache
                at = cy[n, j] * line + low
                _reduce(along_z, copy, at, plane, planes, at, plane, length)
            for p in range(bins_z):
                if bz[n, p, 1] == 0:
                    continue
                _reduce(along_y, planes, p * plane + low, line, lines, low, line, length)
                for q in range(bins_y):
                    if by[n, q, 1] == 0:
                        continue
                    _reduce(along_x, lines, q * line, LANES, found, 0, LANES, LANES)
                    for c in range(count):
                        for r in range(bins_x):
                            if bx[n, r, 1] > 0:
                                out[k, first + c, p, q, r] = found[r * LANES + c]


@jit
def roi_align_backward(
    grad: Any, rois: Any, pz: Any, py: Any, px: Any, share: Any, out: Any, image: int, start: int, stop: int
) -> None:
    """Gradients `(K, C, P, Q, R)` of one image's RoIs into `out` `(B, C, D, H, W)`, channels `start` to `stop`.

    What the RoIs don't reach is left as it is.
    """
    kind = out.dtype
    bins_z, bins_y, bins_x = grad.shape[2:]
    wz, cz, bz, nz, z0, depth = _axes(pz, share[:, 0], rois, out.shape[2])
    wy, cy, by, ny, y0, height = _axes(py, share[:, 1], rois, out.shape[3])
    wx, cx, bx, nx, x0, width = _axes(px, share[:, 2], rois, out.shape[4])
    line = width * LANES + _GAP
    plane = (height + 1) * line
    copy, planes = np.empty(depth * plane, kind), np.empty(bins_z * plane, kind)
    lines, given = np.empty(bins_y * line, kind), np.zeros(bins_x * LANES, kind)
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        copy[:] = 0
        for n in range(rois.size):
            k = rois[n]
            if nz[n] * ny[n] * nx[n] == 0:
                continue
            along_z, along_y, along_x = (wz[n], cz[n], bz[n]), (wy[n], cy[n], by[n]), (wx[n], cx[n], bx[n])
            low = cx[n, 0] * LANES
            length = (cx[n, nx[n] - 1] + 1) * LANES - low
            for p in range(bins_z):
                if bz[n, p, 1] == 0:
                    continue
                for q in range(bins_y):
                    for m in range(np.uint64(q * line + low), np.uint64(q * line + low + length)):
                        lines[m] = 0
                    for c in range(count):
                        for r in range(bins_x):
                            given[r * LANES + c] = grad[k, first + c, p, q, r]
                    _spread(along_x, given, 0, LANES, lines, q * line, LANES, LANES)
                for j in range(ny[n]):
                    at = p * plane + cy[n, j] * line + low
                    for m in range(np.uint64(at), np.uint64(at + length)):
                        planes[m] = 0
                _spread(along_y, lines, low, line, planes, p * plane + low, line, length)
            for j in range(ny[n]):
                at = cy[n, j] * line + low
                _spread(along_z, planes, at, plane, copy, at, plane, length)
        for z in range(depth):
            for y in range(height):
                for c in range(count):
                    at = np.uint64(z * plane + y * line + c)
                    for x in range(np.uint64(x0), np.uint64(x0 + width)):
                        out[image, first + c, z0 + z, y0 + y, x] = copy[at]
                        at += np.uint64(LANES)


@jit
def roi_masks_forward(
    masks: Any, ids: Any, batch: Any, pz: Any, py: Any, px: Any, share: Any, out: Any, start: int, stop: int
) -> None:
    """`masks == id` of RoIs `start` to `stop`, `masks` `(B, D, H, W)` integer, into `out` `(K, P, Q, R)`."""
    bins_z, bins_y, bins_x = out.shape[1:]
    rois = np.arange(start, stop)
    wz, cz, bz, nz, z0, _ = _axes(pz, share[:, 0], rois, masks.shape[1])
    wy, cy, by, ny, y0, _ = _axes(py, share[:, 1], rois, masks.shape[2])
    wx, cx, _, nx, x0, _ = _axes(px, share[:, 2], rois, masks.shape[3])
    line = np.empty(bins_x, out.dtype)
    plane = np.empty((bins_y, bins_x), out.dtype)
    for n in range(rois.size):
        k = rois[n]
        out[k] = 0
        image, number = batch[k], ids[k]
        for i in range(nz[n]):
            plane[:] = 0
            hit = False
            for j in range(ny[n]):
                line[:] = 0
                inside = False
                for x in range(nx[n]):
                    if masks[image, z0 + cz[n, i], y0 + cy[n, j], x0 + cx[n, x]] == number:
                        inside = True
                        for r in range(bins_x):
                            line[r] += wx[n, r, x]
                if inside:
                    hit = True
                    for q in range(bins_y):
                        if by[n, q, 0] <= j < by[n, q, 1]:
                            for r in range(bins_x):
                                plane[q, r] += wy[n, q, j] * line[r]
            if hit:
                for p in range(bins_z):
                    if bz[n, p, 0] <= i < bz[n, p, 1]:
                        for q in range(bins_y):
                            for r in range(bins_x):
                                out[k, p, q, r] += wz[n, p, i] * plane[q, r]

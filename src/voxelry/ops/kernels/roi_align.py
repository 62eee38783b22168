"""RoIAlign on the CPU: separable along the axes, with the channels innermost while it sums.

All arrays are of rank 3 (`voxelry.ops.roi_align` lifts rank 2 to depth one). Eight channels of an image at a
time are turned to channels last, in one pass over the part where its RoIs lie; then each RoI is reduced along
z, y and x. The backward pass is the same, transposed, and adds the RoIs in their order. A call owns some
channels of one image: no two calls write one number, so threads share the work by channels, and the sums do
not depend on how many threads there are.

`pz`, `py` and `px` are `(K, bins, samples)`: where each axis is sampled, in cells, clamped to the image; below
zero where a sample doesn't count. `share` is `(K, 3)`: the weight of one sample along each axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelry.ops.kernels import jit

__all__ = ["LANES", "roi_align_backward", "roi_align_forward", "roi_masks_forward"]

# Channels at a time: one vector register of float32, and a working copy that the last-level cache can hold.
LANES = 8


@jit
def _extent(points: Any, batch: Any, image: int, size: int) -> tuple[int, int]:
    """First cell and end of what the RoIs of one image read along one axis; `(0, 0)` for nothing."""
    low, high = size, 0
    for k in range(batch.size):
        if batch[k] == image:
            for p in range(points.shape[1]):
                for t in range(points.shape[2]):
                    point = points[k, p, t]
                    if point >= 0:
                        low = min(low, int(point))
                        high = max(high, min(int(point) + 2, size))
    return (low, high) if high > 0 else (0, 0)


@jit
def _axis(points: Any, share: Any, size: int, weights: Any, cells: Any, band: Any) -> int:
    """What one RoI needs along one axis, from its points `(bins, samples)`.

    Fills `weights` `(bins, used)`, the indices `cells` of the cells that are used, and `band` `(bins, 2)`,
    the range of used cells of each bin; returns how many are used.
    """
    bins, samples = points.shape
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
def _sum_rows(weights: Any, low: int, high: int, rows: Any, target: Any) -> None:
    """`target` `(n,)` becomes the rows `low` to `high` (at least one) of `rows`, weighted and summed."""
    count = target.size
    a, wa = rows[low], weights[low]
    if high - low == 1:
        for n in range(count):
            target[n] = wa * a[n]
        return
    b, wb = rows[low + 1], weights[low + 1]
    if high - low == 2:
        for n in range(count):
            target[n] = wa * a[n] + wb * b[n]
        return
    c, wc = rows[low + 2], weights[low + 2]
    for n in range(count):
        target[n] = wa * a[n] + wb * b[n] + wc * c[n]
    for k in range(low + 3, high):
        a, wa = rows[k], weights[k]
        for n in range(count):
            target[n] += wa * a[n]


@jit
def _add_row(weight: Any, row: Any, target: Any) -> None:
    for n in range(target.size):
        target[n] += weight * row[n]


@jit
def roi_align_forward(
    features: Any, batch: Any, pz: Any, py: Any, px: Any, share: Any, out: Any, image: int, start: int, stop: int
) -> None:
    """RoIs of one image of `features` `(B, C, D, H, W)` into `out` `(K, C, P, Q, R)`, channels `start` to `stop`."""
    depth, height, width = features.shape[2:]
    bins_z, bins_y, bins_x = out.shape[2:]
    kind = features.dtype
    wz, cz, bz = np.empty((bins_z, depth), kind), np.empty(depth, np.int64), np.empty((bins_z, 2), np.int64)
    wy, cy, by = np.empty((bins_y, height), kind), np.empty(height, np.int64), np.empty((bins_y, 2), np.int64)
    wx, cx, bx = np.empty((bins_x, width), kind), np.empty(width, np.int64), np.empty((bins_x, 2), np.int64)
    z0, z1 = _extent(pz, batch, image, depth)
    y0, y1 = _extent(py, batch, image, height)
    x0, x1 = _extent(px, batch, image, width)
    copy = np.zeros((z1 - z0, y1 - y0, (x1 - x0) * LANES), kind)
    voxels = copy.reshape((z1 - z0, y1 - y0, x1 - x0, LANES))
    lines = np.empty((bins_z, y1 - y0, (x1 - x0) * LANES), kind)
    row = np.empty((x1 - x0) * LANES, kind)
    cells = row.reshape((x1 - x0, LANES))
    found = np.empty((bins_x, LANES), kind)
    lanes = found.shape[1]  # not the constant: the compiler would unroll loops instead of using vectors
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for z in range(z1 - z0):
            for y in range(y1 - y0):
                for c in range(count):
                    for x in range(x1 - x0):
                        voxels[z, y, x, c] = features[image, first + c, z0 + z, y0 + y, x0 + x]
        for k in range(batch.size):
            if batch[k] != image:
                continue
            out[k, first : first + count] = 0
            nz = _axis(pz[k], share[k, 0], depth, wz, cz, bz)
            ny = _axis(py[k], share[k, 1], height, wy, cy, by)
            nx = _axis(px[k], share[k, 2], width, wx, cx, bx)
            if nz * ny * nx == 0:
                continue
            low, high = (cx[0] - x0) * LANES, (cx[nx - 1] + 1 - x0) * LANES
            for j in range(ny):  # before the bins: what is read stays in the nearest cache
                source = copy[:, cy[j] - y0, low:high]
                for p in range(bins_z):
                    line = lines[p, j, : high - low]
                    line[:] = 0
                    for i in range(bz[p, 0], bz[p, 1]):
                        _add_row(wz[p, i], source[cz[i] - z0], line)
            for p in range(bins_z):
                if bz[p, 1] == 0:
                    continue
                for q in range(bins_y):
                    if by[q, 1] == 0:
                        continue
                    _sum_rows(wy[q], by[q, 0], by[q, 1], lines[p, :, : high - low], row[: high - low])
                    for r in range(bins_x):
                        for n in range(lanes):
                            found[r, n] = 0
                        for x in range(bx[r, 0], bx[r, 1]):
                            weight, cell = wx[r, x], cx[x] - cx[0]
                            for n in range(lanes):
                                found[r, n] += weight * cells[cell, n]
                    for c in range(count):
                        for r in range(bins_x):
                            out[k, first + c, p, q, r] = found[r, c]


@jit
def roi_align_backward(
    grad: Any, batch: Any, pz: Any, py: Any, px: Any, share: Any, out: Any, image: int, start: int, stop: int
) -> None:
    """Gradients `(K, C, P, Q, R)` of one image's RoIs into `out` `(B, C, D, H, W)`, channels `start` to `stop`.

    What the RoIs don't reach is left as it is.
    """
    depth, height, width = out.shape[2:]
    bins_z, bins_y, bins_x = grad.shape[2:]
    kind = out.dtype
    wz, cz, bz = np.empty((bins_z, depth), kind), np.empty(depth, np.int64), np.empty((bins_z, 2), np.int64)
    wy, cy, by = np.empty((bins_y, height), kind), np.empty(height, np.int64), np.empty((bins_y, 2), np.int64)
    wx, cx, bx = np.empty((bins_x, width), kind), np.empty(width, np.int64), np.empty((bins_x, 2), np.int64)
    z0, z1 = _extent(pz, batch, image, depth)
    y0, y1 = _extent(py, batch, image, height)
    x0, x1 = _extent(px, batch, image, width)
    copy = np.empty((z1 - z0, y1 - y0, (x1 - x0) * LANES), kind)
    voxels = copy.reshape((z1 - z0, y1 - y0, x1 - x0, LANES))
    lines = np.empty((height, (x1 - x0) * LANES), kind)
    row = np.empty((x1 - x0) * LANES, kind)
    cells = row.reshape((x1 - x0, LANES))
    given = np.zeros((bins_x, LANES), kind)
    lanes = given.shape[1]
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        copy[:] = 0
        for k in range(batch.size):
            if batch[k] != image:
                continue
            nz = _axis(pz[k], share[k, 0], depth, wz, cz, bz)
            ny = _axis(py[k], share[k, 1], height, wy, cy, by)
            nx = _axis(px[k], share[k, 2], width, wx, cx, bx)
            if nz * ny * nx == 0:
                continue
            low, high = (cx[0] - x0) * LANES, (cx[nx - 1] + 1 - x0) * LANES
            for p in range(bins_z):
                if bz[p, 1] == 0:
                    continue
                for j in range(ny):
                    lines[j, : high - low] = 0
                for q in range(bins_y):
                    if by[q, 1] == 0:
                        continue
                    for c in range(count):
                        for r in range(bins_x):
                            given[r, c] = grad[k, first + c, p, q, r]
                    row[: high - low] = 0
                    for r in range(bins_x):
                        for x in range(bx[r, 0], bx[r, 1]):
                            weight, cell = wx[r, x], cx[x] - cx[0]
                            for n in range(lanes):
                                cells[cell, n] += weight * given[r, n]
                    for j in range(by[q, 0], by[q, 1]):
                        _add_row(wy[q, j], row[: high - low], lines[j, : high - low])
                for j in range(ny):
                    target = copy[:, cy[j] - y0, low:high]
                    for i in range(bz[p, 0], bz[p, 1]):
                        _add_row(wz[p, i], lines[j, : high - low], target[cz[i] - z0])
        for z in range(z1 - z0):
            for y in range(y1 - y0):
                for c in range(count):
                    target = out[image, first + c, z0 + z, y0 + y]
                    for x in range(x1 - x0):
                        target[x0 + x] = voxels[z, y, x, c]


@jit
def roi_masks_forward(
    masks: Any, ids: Any, batch: Any, pz: Any, py: Any, px: Any, share: Any, out: Any, start: int, stop: int
) -> None:
    """`masks == id` of RoIs `start` to `stop`, `masks` `(B, D, H, W)` integer, into `out` `(K, P, Q, R)`."""
    depth, height, width = masks.shape[1:]
    bins_z, bins_y, bins_x = out.shape[1:]
    kind = out.dtype
    wz, cz, bz = np.empty((bins_z, depth), kind), np.empty(depth, np.int64), np.empty((bins_z, 2), np.int64)
    wy, cy, by = np.empty((bins_y, height), kind), np.empty(height, np.int64), np.empty((bins_y, 2), np.int64)
    wx, cx, bx = np.empty((bins_x, width), kind), np.empty(width, np.int64), np.empty((bins_x, 2), np.int64)
    line = np.empty(bins_x, kind)
    plane = np.empty((bins_y, bins_x), kind)
    for k in range(start, stop):
        out[k] = 0
        nz = _axis(pz[k], share[k, 0], depth, wz, cz, bz)
        ny = _axis(py[k], share[k, 1], height, wy, cy, by)
        nx = _axis(px[k], share[k, 2], width, wx, cx, bx)
        for i in range(nz):
            plane[:] = 0
            hit = False
            for j in range(ny):
                source = masks[batch[k], cz[i], cy[j]]
                line[:] = 0
                inside = False
                for x in range(nx):
                    if source[cx[x]] == ids[k]:
                        inside = True
                        for r in range(bins_x):
                            line[r] += wx[r, x]
                if inside:
                    hit = True
                    for q in range(bins_y):
                        if by[q, 0] <= j < by[q, 1]:
                            _add_row(wy[q, j], line, plane[q])
            if hit:
                for p in range(bins_z):
                    if bz[p, 0] <= i < bz[p, 1]:
                        weight = wz[p, i]
                        for q in range(bins_y):
                            _add_row(weight, plane[q], out[k, p, q])

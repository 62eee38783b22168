"""RoIAlign of 128 RoIs in a 64-channel volume of 64 x 64 x 64 cells, 7 x 7 x 7 bins, two samples per bin and axis.

Ours, forward and backward, beside (a) a loop over samples and their eight corners compiled with Numba, the
algorithm of the usual CUDA kernels, and (b) `grid_sample` and average pooling. All have the same features (channels
first), RoIs and number of threads; the largest difference of the results is printed with the ratios.

    python benchmarks/roi_align.py [--threads 2] [--sides 6 16] [--repeats 7]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.ops.kernels import jit
from voxelry.ops.roi_align import roi_align

CHANNELS, SIZE, ROIS, BINS, RATIO = 64, 64, 128, 7, 2
TARGETS = {"eight corners": 5.0, "grid_sample": 20.0}


@jit
def corner_loop(volume: Any, points: Any, out: Any, start: int, stop: int) -> None:
    """Every sample of RoIs `start` to `stop` from its eight corners; `points` is `(K, 3, bins, samples)`, inside."""
    channels, depth, height, width = volume.shape
    one = np.float32(1)
    for k in range(start, stop):
        for c in range(channels):
            cells = volume[c]
            for p in range(out.shape[2]):
                for q in range(out.shape[3]):
                    for r in range(out.shape[4]):
                        total = np.float32(0)
                        for i in range(points.shape[3]):
                            z = points[k, 0, p, i]
                            z0 = int(z)
                            fz, z1 = z - np.float32(z0), min(z0 + 1, depth - 1)
                            for j in range(points.shape[3]):
                                y = points[k, 1, q, j]
                                y0 = int(y)
                                fy, y1 = y - np.float32(y0), min(y0 + 1, height - 1)
                                for m in range(points.shape[3]):
                                    x = points[k, 2, r, m]
                                    x0 = int(x)
                                    fx, x1 = x - np.float32(x0), min(x0 + 1, width - 1)
                                    near = (one - fy) * (
                                        (one - fx) * cells[z0, y0, x0] + fx * cells[z0, y0, x1]
                                    ) + fy * ((one - fx) * cells[z0, y1, x0] + fx * cells[z0, y1, x1])
                                    far = (one - fy) * (
                                        (one - fx) * cells[z1, y0, x0] + fx * cells[z1, y0, x1]
                                    ) + fy * ((one - fx) * cells[z1, y1, x0] + fx * cells[z1, y1, x1])
                                    total += (one - fz) * near + fz * far
                        out[k, c, p, q, r] = total / np.float32(points.shape[3] ** 3)


def eight_corners(features: Tensor, points: Tensor) -> Tensor:
    out = torch.empty(len(points), features.shape[1], BINS, BINS, BINS)
    arrays = features[0].numpy(), points.numpy(), out.numpy()
    threads = torch.get_num_threads()
    edges = np.linspace(0, len(points), threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: corner_loop(*arrays, edges[part], edges[part + 1]), range(threads)))
    return out


def grid_sampled(features: Tensor, points: Tensor) -> Tensor:
    grid = points.flatten(2) * 2 / (SIZE - 1) - 1  # (K, 3, bins * samples)
    results = []
    for z, y, x in grid:  # one RoI at a time: all of them would take 2 GB
        places = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
        results.append(F.avg_pool3d(F.grid_sample(features, places[None], align_corners=True), RATIO))
    return torch.cat(results)


def strewn(count: int, size: int, sides: Sequence[float], *, ndim: int = 3) -> Tensor:
    """Boxes inside an image of `size` cells per axis, `(count, 2 * ndim)`; each side is drawn for itself."""
    side = sides[0] + torch.rand(count, ndim) * (sides[1] - sides[0])
    low = torch.rand(count, ndim) * (size - 1 - side)
    return torch.cat((low, low + side), dim=1)


def sample_points(boxes: Tensor) -> Tensor:
    low, high = boxes[:, :3, None, None], boxes[:, 3:, None, None]
    place = torch.arange(BINS)[:, None] + (torch.arange(RATIO) + 0.5) / RATIO
    return (low + (high - low) * place / BINS).contiguous()


def median_ms(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall-clock and processor time of all threads; the second is less disturbed by others on the machine."""
    if repeats > 1:
        work()
    times = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    wall, processor = np.median(times, axis=0) * 1e3
    return float(wall), float(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", type=float, nargs=2, default=(6, 16), help="cells, drawn evenly for each axis")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    features = torch.randn(1, CHANNELS, SIZE, SIZE, SIZE)
    boxes, batch = strewn(ROIS, SIZE, arguments.sides), torch.zeros(ROIS, dtype=torch.int64)
    points = sample_points(boxes)
    leaf = features.clone().requires_grad_()
    weight = torch.randn(ROIS, CHANNELS, BINS, BINS, BINS)

    def both(forward: Callable[[Tensor], Tensor]) -> None:
        leaf.grad = None
        forward(leaf).backward(weight)

    print(f"{ROIS} RoIs of {arguments.sides[0]:g} to {arguments.sides[1]:g} cells, {arguments.threads} threads")
    last = features.contiguous(memory_format=torch.channels_last_3d)
    reference = roi_align(features, boxes, batch, BINS)
    ours, own = median_ms(lambda: roi_align(features, boxes, batch, BINS), arguments.repeats)
    print(f"{'ours':14} forward {ours:8.1f} ms, {own:8.1f} ms of processor time")
    wall, other = median_ms(lambda: roi_align(last, boxes, batch, BINS), arguments.repeats)
    print(f"{'channels last':14} forward {wall:8.1f} ms, {other:8.1f}")
    ours_both, own_both = median_ms(lambda: both(lambda x: roi_align(x, boxes, batch, BINS)), arguments.repeats)
    print(f"{'ours':14} forward and backward {ours_both:8.1f} ms, {own_both:8.1f}")
    for name, peer in (("eight corners", eight_corners), ("grid_sample", grid_sampled)):
        wall, other = median_ms(lambda peer=peer: peer(features, points), max(2, arguments.repeats // 3))
        difference = float((peer(features, points) - reference).abs().max())
        verdict = "kept" if other / own >= TARGETS[name] else "MISSED"
        print(
            f"{name:14} forward {wall:8.1f} ms, {other:8.1f}: ours {wall / ours:.1f} times faster, {other / own:.1f} "
            f"in processor time, target {TARGETS[name]:g}: {verdict}; largest difference {difference:.1e}"
        )
    wall, other = median_ms(lambda: both(lambda x: grid_sampled(x, points)), 1)
    print(f"{'grid_sample':14} forward and backward {wall:8.1f} ms, {other:8.1f}: ours {other / own_both:.1f} times")


if __name__ == "__main__":
    main()

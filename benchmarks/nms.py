"""3-D NMS on a CPU against MONAI's, on the same boxes in one run; the keep sets must be equal.

Boxes of 10 to 40 voxels a side in a volume of 200³, scores at random, IoU above 0.3. Runs of both alternate,
medians are compared, and the first run of each (which compiles) isn't counted. Plain PyTorch is shown besides.

    python benchmarks/nms.py [--boxes 1000 2000 5000] [--repeats 5] [--threads 1]

Goal: at 5,000 boxes, at least 10 times as fast as MONAI's.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

GOAL = 10.0
THRESHOLD = 0.3


def crowd(count: int, ndim: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    low = torch.rand(count, ndim, generator=generator) * 200
    extent = 10 + torch.rand(count, ndim, generator=generator) * 30
    return torch.cat([low, low + extent], dim=1), torch.rand(count, generator=generator)


def monai(boxes: Tensor, scores: Tensor) -> Tensor:
    from monai.data.box_utils import non_max_suppression

    return torch.as_tensor(non_max_suppression(boxes, scores, THRESHOLD))


def version(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    from voxelry.ops.kernels.dispatch import backend
    from voxelry.ops.nms import nms

    def run(boxes: Tensor, scores: Tensor) -> Tensor:
        with backend(name):  # type: ignore[arg-type]
            return nms(boxes, scores, THRESHOLD)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1000, 2000, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # MONAI's, on import
    contestants = {"voxelry": version("numba"), "plain PyTorch": version("torch"), "MONAI": monai}
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {arguments.threads} thread(s)")
    print(
        f"{'boxes':>7}{'kept':>7}" + "".join(f"{name + ', ms':>19}" for name in contestants) + f"{'MONAI/voxelry':>16}"
    )
    ratio = 0.0
    for count in arguments.boxes:
        boxes, scores = crowd(count)
        kept = {name: run(boxes, scores) for name, run in contestants.items()}
        if not all(torch.equal(kept["voxelry"], other) for other in kept.values()):
            sys.exit(f"{count} boxes: the keep sets differ: { {name: len(other) for name, other in kept.items()} }")
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(arguments.repeats):
            for name, run in contestants.items():
                begin = time.perf_counter()
                run(boxes, scores)
                times[name].append(1000 * (time.perf_counter() - begin))
        median = {name: statistics.median(values) for name, values in times.items()}
        ratio = median["MONAI"] / median["voxelry"]
        columns = "".join(f"{value:>19.2f}" for value in median.values())
        print(f"{count:>7}{len(kept['voxelry']):>7}{columns}{ratio:>16.1f}")
    print(f"goal: {GOAL:.0f} times MONAI's at the last size: {'met' if ratio >= GOAL else 'missed'}")


if __name__ == "__main__":
    main()

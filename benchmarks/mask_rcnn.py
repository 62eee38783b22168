"""Mask R-CNN on a CPU: time of a 2-D step, and peak memory of a 3-D one. Figures of ours alone.

The 2-D network is that of torchvision's published detector (ResNet-50, pyramid of 256 channels, 91 classes) on one
photograph of 800 by 1088 pixels. torchvision itself can't be measured beside it: its compiled operations don't load
with the CPU build of PyTorch that is used here, and without them it has neither suppression nor RoIAlign.
The 3-D network has 27 anchors per voxel of three levels; its training step is run with and without the options that
save memory. Each run is a process of its own, so that its peak resident memory is its own.

    python benchmarks/mask_rcnn.py [--repeats 3] [--threads 2] [--volume 64] [--only photograph]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

RUNS = ("photograph", "photograph_training", "volume", "volume_training", "volume_training_checkpointed")


def build(name: str) -> Any:
    """The network of a run."""
    from voxelry.backbones import FPN, ResNet
    from voxelry.models.mask_rcnn import MaskRCNN

    if name.startswith("photograph"):
        body = ResNet(ndim=2, in_channels=3, block="bottleneck", layers=(3, 4, 6, 3), norm="frozen_batch")
        return MaskRCNN(FPN(body), num_classes=91)
    body = ResNet(ndim=3, layers=(1, 1, 1), levels=("p2", "p3", "p4"), width=16, norm="group")
    return MaskRCNN(
        FPN(body, out_channels=64, extra=None),
        num_classes=2,
        anchors={"sizes": [[6, 8, 10], [12, 16, 20], [24, 32, 40]]},
        box={"channels": 256},
        mask={"convs": (64, 64, 64, 64), "chunk": 16, "checkpointing": name.endswith("checkpointed")},
    )


def objects(ndim: int, shape: tuple[int, ...], count: int) -> tuple[Any, Any]:
    """Boxes and ids of cubes strewn over the image."""
    import torch

    masks = torch.zeros(1, *shape, dtype=torch.int64)
    boxes = []
    for index in range(count):
        low = [int(torch.randint(0, size * 3 // 4, ())) for size in shape]
        high = [first + max(3, size // 8) for first, size in zip(low, shape, strict=True)]
        masks[(0, *(slice(a, b) for a, b in zip(low, high, strict=True)))] = index + 1
        boxes.append([first - 0.5 for first in low] + [last - 0.5 for last in high])
    return [torch.tensor(boxes)], masks


def measure(name: str, size: int, threads: int) -> dict[str, float]:
    """Seconds of one step after another, and gigabytes at the peak."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = (800, 1088) if name.startswith("photograph") else (size,) * 3
    network = build(name).train("training" in name)
    image = torch.randn(1, network.backbone.in_channels, *shape)
    boxes, masks = objects(len(shape), shape, 64)

    def step() -> None:
        if "training" in name:
            sum(network.losses(image, boxes, None, masks).values()).backward()
            network.zero_grad(set_to_none=True)
        else:
            network.detect(image)

    step()
    begin = time.perf_counter()
    step()
    return {
        "seconds": time.perf_counter() - begin,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "parameters_m": sum(weight.numel() for weight in network.parameters()) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--volume", type=int, default=64, help="voxels along each axis of the 3-D image")
    parser.add_argument("--only", choices=RUNS, help="measure one, in this process, and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.volume, options.threads)))
        return
    import torch

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, volume {options.volume}")
    for name in RUNS:
        rows = []
        for _ in range(options.repeats):
            command = [sys.executable, __file__, "--only", name]
            command += ["--volume", str(options.volume), "--threads", str(options.threads)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(
            f"{name:30s} {middle['seconds']:7.2f} s  peak {middle['peak_gb']:5.2f} GB  "
            f"{middle['parameters_m']:6.1f} M parameters",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Mask R-CNN on a CPU: processor time and peak memory of training steps and detections, in both ranks.

`photograph` is torchvision's published detector (ResNet-50, pyramid of 256 channels, 91 classes) on 800 by 1088 pixels.
`volume` has 27 anchors per voxel of three levels; its training step is run with and without the option that saves
memory. `small_2d` and `small_3d` are what `experiment=segment_2d` and `segment_3d` train.
Each run is a process of its own, so that its peak resident memory is its own. With `--against` every run is made
alternately with another version of voxelry, and the ratio is printed.

    python benchmarks/mask_rcnn.py [--runs volume_training] [--repeats 3] [--threads 1] [--against ../other/src]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNS = (
    "photograph",
    "photograph_training",
    "volume",
    "volume_training",
    "volume_training_checkpointed",
    "small_2d",
    "small_2d_training",
    "small_3d",
    "small_3d_training",
)
HERE = Path(__file__).resolve().parent
STEPS = 3


def build(name: str) -> Any:
    """The network of a run."""
    from voxelry.backbones import FPN, ResNet
    from voxelry.models.mask_rcnn import MaskRCNN

    if name.startswith("small"):
        return small(2 if "2d" in name else 3)
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


def small(ndim: int) -> Any:
    """The network of `experiment=segment_2d` and `segment_3d`, for objects of 8 to 32 voxels."""
    import yaml

    from voxelry import configs
    from voxelry.backbones import build_backbone
    from voxelry.models.mask_rcnn import MaskRCNN

    folder = Path(configs.__file__).parent
    settings = yaml.safe_load((folder / "model" / "mask_rcnn_small.yaml").read_text())
    settings["anchors"] |= {"sizes": [[8, 12], [16, 32]]}
    del settings["_target_"], settings["anchors"]["unit"], settings["anchors"]["per_level"]
    backbone = yaml.safe_load((folder / "backbone" / "resnet_fpn_small.yaml").read_text())
    backbone["backbone"]["stem_stride"] = 2
    return MaskRCNN(build_backbone(backbone, ndim=ndim, in_channels=1), **settings)


def picture(name: str, size: int) -> tuple[tuple[int, ...], int]:
    """Size of the image of a run, and how many objects it has."""
    if name.startswith("small_2d"):
        return (256, 256), 40
    return ((800, 1088) if name.startswith("photograph") else (size,) * 3), 64


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
    """Processor time of a step, the least of some after the first, and gigabytes at the peak."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape, count = picture(name, size)
    network = build(name).train("training" in name)
    image = torch.randn(1, network.backbone.in_channels, *shape)
    boxes, masks = objects(len(shape), shape, count)

    def step() -> float:
        begin = time.process_time()
        if "training" in name:
            sum(network.losses(image, boxes, None, masks).values()).backward()
            network.zero_grad(set_to_none=True)
        else:
            network.detect(image)
        return time.process_time() - begin

    step()
    return {
        "seconds": min(step() for _ in range(STEPS)),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "parameters_m": sum(weight.numel() for weight in network.parameters()) / 1e6,
    }


def run(name: str, size: int, threads: int, source: str) -> dict[str, float]:
    """`measure` in a process of its own, by the version of voxelry in the folder `source`."""
    command = [sys.executable, __file__, "--only", name, "--volume", str(size), "--threads", str(threads)]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--volume", type=int, default=64, help="voxels along each axis of the 3-D image")
    parser.add_argument("--against", help="src folder of another version of voxelry")
    parser.add_argument("--only", choices=RUNS, help="measure one, in this process, and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.volume, options.threads)))
        return
    import torch

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, volume {options.volume}")
    sources = [str(HERE.parent / "src"), *([options.against] if options.against else [])]
    for name in options.runs:
        rows: list[list[dict[str, float]]] = [[] for _ in sources]
        for _ in range(options.repeats):
            for found, source in zip(rows, sources, strict=True):
                found.append(run(name, options.volume, options.threads, source))
        least = [{key: min(row[key] for row in found) for key in found[0]} for found in rows]
        line = " against ".join(f"{one['seconds']:7.3f} s, peak {one['peak_gb']:5.2f} GB" for one in least)
        if options.against:
            line += "".join(f"  {least[0][key] / least[1][key]:5.2f}" for key in ("seconds", "peak_gb"))
        print(f"{name:30s} {line}  {least[0]['parameters_m']:6.1f} M parameters", flush=True)


if __name__ == "__main__":
    main()

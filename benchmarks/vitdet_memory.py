"""Memory and time of a training step of ViTDet over the size of a volume: windows as shipped, and attention to all.

    python benchmarks/vitdet_memory.py [SIZE ...]

Prints, for cubes of each size, the seconds of a step and the largest resident memory beyond that before the network
was built. Each is measured in a process of its own, on one thread.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch
from omegaconf import OmegaConf

from voxelry.backbones import build_backbone
from voxelry.bundle.backbone import resolved
from voxelry.core.space import Space
from voxelry.engine.compose import compose_training

SIZES = (32, 64, 96, 128)
SIDES = {"windows": (), "all": ("backbone.window_size=0",)}


def step(side: str, size: int) -> tuple[float, float]:
    """Seconds and MiB of one forward and backward pass over a cube."""
    torch.set_num_threads(1)
    config = compose_training(["experiment=segment_3d", "data.root=.", "backbone=vitdet", *SIDES[side]])
    described = resolved(OmegaConf.to_container(config.backbone), Space.from_spacing((size,) * 3), 1)  # type: ignore[arg-type]
    before = _peak()
    network = build_backbone(described)
    begin = time.perf_counter()
    sum(level.square().mean() for level in network(torch.randn(1, 1, *(size,) * 3)).values()).backward()
    return time.perf_counter() - begin, _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each size on both sides."""
    if len(sys.argv) == 4 and sys.argv[1] == "--step":
        print(*step(sys.argv[2], int(sys.argv[3])))
        return
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    print("| size | tokens | windows: MiB | s | all: MiB | s | ratio of memory |\n|---|---|---|---|---|---|---|")
    for size in sizes:
        cells = []
        for side in SIDES:
            command = [sys.executable, __file__, "--step", side, str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cells.append([float(word) for word in done.stdout.split()])
        (quick, small), (slow, large) = cells
        print(
            f"| {size}³ | {(size // 8) ** 3} | {small:.0f} | {quick:.2f} | {large:.0f} | {slow:.2f} "
            f"| {large / small:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""The original's U-Net on a CPU, one forward and backward pass, against MONAI's DiffusionModelUNet.

64³ input, batch 1, one channel, width 64, multipliers 1, 2, 4. Each run is a process of its own, so that
its peak resident memory is its own; ours and MONAI's alternate, and medians are compared.

    python benchmarks/unet.py [--size 64] [--repeats 3] [--threads 2] [--checkpointing auto]

Goals: time at most 0.7 of MONAI's, peak memory at most 0.4 of it.
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

GOALS = {"seconds": 0.7, "peak_gb": 0.4}


def build(name: str, checkpointing: str, *, narrow: bool = False) -> Any:
    """The network of that name, comparable in width, depth and attention; a narrow one for trying things out."""
    width = 32 if narrow else 64
    if name == "voxelry":
        from voxelry.models.unet import UNet

        return UNet(ndim=3, width=width, multipliers=(1, 2, 4), checkpointing=checkpointing)
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(width, 2 * width, 4 * width),
        num_res_blocks=2,
        attention_levels=(False, False, True),
        num_head_channels=32,
        norm_num_groups=32,
    )


def measure(name: str, size: int, threads: int, checkpointing: str) -> dict[str, float]:
    """One forward and backward pass after a small one; seconds, and gigabytes at the peak."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build(name, checkpointing).train()
    step = torch.tensor([10])
    network(torch.randn(1, 1, 16, 16, 16), step).square().mean().backward()
    network.zero_grad(set_to_none=True)
    x = torch.randn(1, 1, size, size, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    busy = time.process_time()
    begin = time.perf_counter()
    loss = network(x, step).square().mean()
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    return {
        "seconds": end - begin,
        "forward": middle - begin,
        "backward": end - middle,
        "cpu_seconds": time.process_time() - busy,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "before_gb": before / 2**20,
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", default="auto")
    parser.add_argument("--only", choices=("voxelry", "monai"), help="measure one, in this process, and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.size, options.threads, options.checkpointing)))
        return
    runs: dict[str, list[dict[str, float]]] = {"voxelry": [], "monai": []}
    for _ in range(options.repeats):
        for name, rows in runs.items():
            command = [sys.executable, __file__, "--only", name, "--size", str(options.size)]
            command += ["--threads", str(options.threads), "--checkpointing", options.checkpointing]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
            print(name, {key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    import torch

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, size {options.size}")
    for key in ("forward", "backward", "seconds", "cpu_seconds", "peak_gb"):
        ours, theirs = (statistics.median(row[key] for row in runs[name]) for name in ("voxelry", "monai"))
        goal = f" (goal {GOALS[key]})" if key in GOALS else ""
        print(f"{key:11s} voxelry {ours:6.2f}  monai {theirs:6.2f}  ratio {ours / theirs:.2f}{goal}")


if __name__ == "__main__":
    main()

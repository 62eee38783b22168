"""A training step of the translation networks on a CPU, against MONAI's DiffusionModelUNet at equal parameters.

Batch 1, condition and noisy image in, one channel out. Each run is a process of its own, so that its peak resident
memory is its own; the networks alternate, and medians are compared. Then what the networks keep for the backward
pass, per voxel, at about 40 million parameters; and a 128³ volume in four calls of the default model.

    python benchmarks/translate.py [--size 64 96 96] [--repeats 3] [--threads 2] [--skip-step]

Goals: time at most 0.7 and memory at most 0.5 of MONAI's, with the wavelet front end 0.2 of both; 1 KB per voxel;
60 s for the volume.
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

GOALS = {"voxelry": {"seconds": 0.7, "peak_gb": 0.5}, "haar": {"seconds": 0.2, "peak_gb": 0.2}}
SHARED = {
    "ndim": 3,
    "in_channels": 2,
    "block": "pre_norm",
    "attention": "none",
    "middle_attention": "window",
}


def build(name: str) -> Any:
    """The network of that name; ours put as many parameters, and a few more, into one more level."""
    if name == "monai":
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        return DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2,
            out_channels=1,
            channels=(64, 128, 256),
            num_res_blocks=1,
            attention_levels=(False, False, False),
            num_head_channels=32,
            norm_num_groups=32,
        )
    from voxelry.models.unet import UNet
    from voxelry.models.unet.haar import HaarUNet

    kind = HaarUNet if name == "haar" else UNet
    return kind(width=48, multipliers=(1, 2, 4, 7), blocks_per_level=1, **SHARED)


def measure(name: str, size: list[int], threads: int) -> dict[str, float]:
    """One forward and backward pass after a small one; seconds, and gigabytes at the peak above those before it."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build(name).train()
    step = torch.tensor([10])
    network(torch.randn(1, 2, 16, 16, 16), step).square().mean().backward()
    network.zero_grad(set_to_none=True)
    x = torch.randn(1, 2, *size)
    busy, begin = time.process_time(), time.perf_counter()
    network(x, step).square().mean().backward()
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - busy,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
    }


def compare(options: argparse.Namespace) -> None:
    """The step, ours and theirs by turns."""
    runs: dict[str, list[dict[str, float]]] = {"voxelry": [], "haar": [], "monai": []}
    for _ in range(options.repeats):
        for name, rows in runs.items():
            command = [sys.executable, __file__, "--only", name, "--threads", str(options.threads)]
            command += ["--size", *map(str, options.size)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
            print(name, {key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    for name, goals in GOALS.items():
        for key in ("seconds", "cpu_seconds", "peak_gb"):
            ours, theirs = (statistics.median(row[key] for row in runs[each]) for each in (name, "monai"))
            goal = f" (goal {goals[key]})" if key in goals else ""
            print(f"{name:8s} {key:11s} {ours:6.2f}  monai {theirs:6.2f}  ratio {ours / theirs:.2f}{goal}")


def keep(size: list[int]) -> None:
    """Bytes per voxel that wait for the backward pass, at about 40 million parameters."""
    import torch

    from voxelry.models.footprint import kept
    from voxelry.models.unet import UNet
    from voxelry.models.unet.haar import HaarUNet

    voxels = size[0] * size[1] * size[2]
    for kind in (UNet, HaarUNet):
        network = kind(width=64, multipliers=(1, 2, 4), blocks_per_level=2, wiring="dense", **SHARED)
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        for policy in ("none", "norms", "blocks"):
            for dtype in (torch.float32, torch.bfloat16):
                count = kept(network, size, in_channels=2, dtype=dtype, checkpointing=policy)
                kind_name, type_name = kind.__name__, str(dtype).removeprefix("torch.")
                print(
                    f"{kind_name:8s} {millions:.1f} M, {policy:6s} {type_name:8s} {count / voxels:7.0f} bytes a voxel"
                )


def whole(threads: int) -> None:
    """A volume of 128³ by the default model in four calls."""
    import torch

    from voxelry.diffusion.plan import Plan
    from voxelry.engine.compose import compose_training
    from voxelry.models.unet.haar import HaarUNet

    torch.set_num_threads(threads)
    model = compose_training(["model=translate_small", "data.root=none"]).model
    settings = {key: value for key, value in model.items() if not str(key).startswith("_")}
    network = HaarUNet(ndim=3, in_channels=2, **settings).eval()
    condition, noise = torch.randn(2, 1, 1, 128, 128, 128)
    plan = Plan.from_settings(steps=4)
    busy, begin = time.process_time(), time.perf_counter()
    with torch.inference_mode():
        plan.sample(lambda x, t: network(torch.cat((condition, x), dim=1), torch.tensor([t])), noise)
    seconds, work = time.perf_counter() - begin, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"128³ in {plan.calls} calls: {seconds:.1f} s, {work:.1f} s of processors, {peak:.2f} GB (goal 60 s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[64, 96, 96])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-step", action="store_true", help="leave out the comparison with MONAI")
    parser.add_argument("--only", choices=("voxelry", "haar", "monai"), help="measure one, in this process, as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.size, options.threads)))
        return
    import torch

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, size {options.size}")
    if not options.skip_step:
        compare(options)
    keep(options.size)
    whole(options.threads)


if __name__ == "__main__":
    main()

"""The original's U-Net on a CPU, one forward and backward pass, against MONAI's DiffusionModelUNet.

64³ input, batch 1, one channel, width 64, multipliers 1, 2, 4. Each run is a process of its own, so that
its peak resident memory is its own; ours and MONAI's alternate, and medians are compared. The first pass of a process
also waits for memory from the system; the last of `--passes` is what a training takes.

    python benchmarks/unet.py [--size 64] [--repeats 3] [--threads 2] [--checkpointing auto]
    python benchmarks/unet.py --inference
    python benchmarks/unet.py --bfloat16                  # weights and maps channels-last on both sides
    python benchmarks/unet.py --figure sizes.png --sizes 16 24 32 48 64 96 --passes 1
    python benchmarks/unet.py --only voxelry --convolutions

Goals: time at most 0.7 of MONAI's, peak memory at most 0.4 of it; with `--convolutions` at most 1.3 times what our own
convolutions take, each called by itself as PyTorch has it, in its faster layout.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

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


@dataclass(frozen=True)
class Way:
    """How a network is run.

    Attributes:
        size: voxels along each axis.
        threads: of PyTorch.
        checkpointing: what ours computes again.
        passes: one after another; the first and the last are timed.
        inference: whether there is a forward pass only.
        bfloat16: whether it is computed so, with maps and weights channels-last.
        convolutions: whether its convolutions are timed by themselves, too.
    """

    size: int
    threads: int
    checkpointing: str
    passes: int
    inference: bool
    bfloat16: bool
    convolutions: bool

    def flags(self) -> list[str]:
        """As on the command line."""
        found = [f"--{name}={getattr(self, name)}" for name in ("size", "threads", "checkpointing", "passes")]
        return found + [f"--{name}" for name in ("inference", "bfloat16", "convolutions") if getattr(self, name)]


def measure(name: str, way: Way) -> dict[str, float]:
    """Passes after a small one; seconds of the first and of the last, and gigabytes at the peak."""
    import torch

    torch.set_num_threads(way.threads)
    torch.manual_seed(0)
    network = build(name, way.checkpointing).train(not way.inference)
    layout = torch.channels_last_3d if way.bfloat16 else torch.contiguous_format
    network = network.to(memory_format=layout)
    step = torch.tensor([10])

    def run(size: int) -> tuple[float, float, float]:
        x = torch.randn(1, 1, size, size, size).to(memory_format=layout)
        busy, begin = time.process_time(), time.perf_counter()
        with torch.set_grad_enabled(not way.inference), torch.autocast("cpu", torch.bfloat16, enabled=way.bfloat16):
            loss = network(x, step).float().square().mean()
        middle = time.perf_counter()
        if not way.inference:
            loss.backward()
            network.zero_grad(set_to_none=True)
        return middle - begin, time.perf_counter() - middle, time.process_time() - busy

    run(16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = [run(way.size) for _ in range(way.passes)]
    forward, backward, busy = rows[-1]
    alone = {}
    if way.convolutions:
        alone["convolutions"] = sum(alone_seconds(conv, shape, way) for conv, shape in convolutions(network, way.size))
        alone["of_convolutions"] = busy / alone["convolutions"]
    return {
        **alone,
        "first": sum(rows[0][:2]),
        "seconds": forward + backward,
        "forward": forward,
        "backward": backward,
        "cpu_seconds": busy,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "before_gb": before / 2**20,
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
    }


def convolutions(network: Any, size: int) -> list[tuple[Any, tuple[int, ...]]]:
    """The convolutions of a pass with the shapes of their inputs.

    A layer may be computed together with its norm without being called: inside of a block it has the block's size.
    """
    import torch
    from torch.nn.modules.conv import _ConvNd

    from voxelry.nn.conv import WeightStandardisedConv

    kinds = (_ConvNd, WeightStandardisedConv)
    called: dict[Any, tuple[int, ...]] = {}
    around: dict[Any, tuple[int, ...]] = {}

    def note(module: Any, inputs: tuple[Any, ...], _: Any) -> None:
        found = called if isinstance(module, kinds) else around
        maps = [each for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 5]
        if maps:
            found[module] = tuple(maps[0].shape)

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    with torch.no_grad():
        network(torch.randn(1, 1, size, size, size), torch.tensor([10]))
    for hook in hooks:
        hook.remove()
    for block, shape in around.items():
        for child in block.children():
            if isinstance(child, kinds):
                called.setdefault(child, (shape[0], child.weight.shape[1], *shape[2:]))
    missed = [module for module in network.modules() if isinstance(module, kinds) and module not in called]
    if missed:
        raise SystemExit(f"convolutions whose size isn't known: {missed}")
    return list(called.items())


def alone_seconds(conv: Any, shape: tuple[int, ...], way: Way) -> float:
    """Processor time of a convolution as PyTorch has it, the less of both layouts, the least of three calls of each."""
    import torch
    import torch.nn.functional as F

    number = torch.bfloat16 if way.bfloat16 else torch.float32
    least = float("inf")
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.randn(shape, dtype=number).to(memory_format=layout).requires_grad_(not way.inference)
        weight = conv.weight.detach().to(number, memory_format=layout).requires_grad_(not way.inference)
        for _ in range(3):
            begin = time.process_time()
            with torch.set_grad_enabled(not way.inference):
                y = F.conv3d(x, weight, None, getattr(conv, "stride", 1), conv.padding)
            if not way.inference:
                torch.autograd.grad(y, (x, weight), torch.ones_like(y))
            least = min(least, time.process_time() - begin)
    return least


def measured(name: str, way: Way, memory: float) -> dict[str, float] | None:
    """The same in a process of its own; None where it doesn't fit the memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 1e9),) * 2)

    command = [sys.executable, __file__, "--only", name, *way.flags()]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    if result.returncode:
        if "memory" not in result.stderr and "MemoryError" not in result.stderr:
            raise SystemExit(result.stderr)
        return None
    row: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return row


def compare(way: Way, repeats: int, memory: float) -> dict[str, dict[str, float] | None]:
    """Medians of both networks, each row printed as it comes."""
    runs: dict[str, list[dict[str, float] | None]] = {"voxelry": [], "monai": []}
    for _ in range(repeats):
        for name, rows in runs.items():
            rows.append(measured(name, way, memory))
            shown = "out of memory" if rows[-1] is None else {key: round(value, 2) for key, value in rows[-1].items()}
            print(name, shown, flush=True)
    medians: dict[str, dict[str, float] | None] = {}
    for name, rows in runs.items():
        fitting = [row for row in rows if row is not None]
        medians[name] = {k: statistics.median(row[k] for row in fitting) for k in fitting[0]} if fitting else None
    ours, theirs = medians.values()
    for key in ("first", "forward", "backward", "seconds", "cpu_seconds", "peak_gb") if ours and theirs else ():
        goal = f" (goal {GOALS[key]})" if key in GOALS else ""
        print(
            f"{key:11s} voxelry {ours[key]:6.2f}  monai {theirs[key]:6.2f}  ratio {ours[key] / theirs[key]:.2f}{goal}"
        )
    return medians


def draw(path: Path, found: dict[int, dict[str, dict[str, float] | None]], title: str) -> None:
    """Time and memory over the size of both networks."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (key, label) in zip(axes, (("cpu_seconds", "processor time, s"), ("peak_gb", "peak, GB")), strict=True):
        for name, mark in (("voxelry", "o-"), ("monai", "s--")):
            points = [(size, row[key]) for size, rows in found.items() if (row := rows[name]) is not None]
            axis.plot(*zip(*points, strict=True), mark, label=name)
        axis.set(xscale="log", yscale="log", xlabel="voxels along each axis", ylabel=label)
        axis.set_xticks(list(found), [str(size) for size in found])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", default="auto")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--inference", action="store_true", help="forward passes without gradients")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision, channels-last on both sides")
    parser.add_argument("--convolutions", action="store_true", help="time its convolutions by themselves, too")
    parser.add_argument("--memory", type=float, default=20, help="GB that a process may take")
    parser.add_argument("--figure", type=Path, help="where time and memory over --sizes are drawn")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 32, 48, 64], help="of the figure")
    parser.add_argument("--only", choices=("voxelry", "monai"), help="measure one, in this process, and print JSON")
    options = parser.parse_args()
    way = Way(**{name: getattr(options, name) for name in Way.__dataclass_fields__})
    if options.only:
        print(json.dumps(measure(options.only, way)))
        return
    sizes = options.sizes if options.figure else [options.size]
    found = {}
    for size in sizes:
        print(f"{platform.machine()}, {way}, size {size}")
        found[size] = compare(replace(way, size=size), options.repeats, options.memory)
    if options.figure:
        number = "bfloat16" if way.bfloat16 else "float32"
        what = "inference" if way.inference else "forward and backward"
        draw(options.figure, found, f"{what}, {number}, {way.threads} thread{'s' * (way.threads > 1)}")


if __name__ == "__main__":
    main()

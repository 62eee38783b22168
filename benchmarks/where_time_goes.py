"""Where the time of a training step goes: its parts, and its operations by kind.

    python benchmarks/where_time_goes.py                                   # the default experiments, on phantoms
    python benchmarks/where_time_goes.py landmarks_3d segment_3d --size 64 --steps 8

A step: samples are read, augmented and put together, the loss, its gradients, the optimiser, the averaged weights; all
as a training does them, batch after batch in one process. The time of each operation of PyTorch is its own, without
those that it calls; what Numba's kernels and Python take is what no operation accounts for. One thread, processor time.
Prints a row of the table in RESULTS.md for each experiment.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import ProfilerActivity, profile

from gpu_sections.defaults import prepared

DEFAULTS = ("pretrain_3d", "pretrain_mae_3d", "landmarks_3d", "translate_3d", "reconstruct_3d", "segment_3d")
# the first kind that matches an operation's name
KINDS = {
    "convolutions, matrix products": r"conv|mkldnn|addmm|::mm$|linear|bmm",
    "norms, activations": r"norm|silu|gelu|relu|sigmoid|std|var",
    "softmax": r"softmax|attention",
    "resampling": r"upsample|grid_sampler|interpolate|pool|gather|index|scatter|take",
    "copies": r"copy_|clone|contiguous|::cat|::to$|fill_|zero_|::pad|stack|roll|flip|empty",
    "arithmetic": r"aten::",
}
KERNELS = "own kernels, Python"


def kind(name: str) -> str:
    """What an operation belongs to."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), KERNELS)


def by_kind(events: Iterable[Any], total: float) -> dict[str, float]:
    """Seconds of the operations by kind, of so many in all."""
    found: Counter[str] = Counter()
    for event in events:
        found[kind(event.key)] += event.self_cpu_time_total / 1e6
    found[KERNELS] += total - sum(found.values())
    return dict(found)


class Clock:
    """Processor seconds by part of a step."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def run(self, part: str, work: Callable[[], Any]) -> Any:
        """Do it, and count its time."""
        begin = time.process_time()
        found = work()
        self.seconds[part] += time.process_time() - begin
        return found


def steps(experiment: str, size: int, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a step by part, and those of loss and gradients by kind of operation."""
    task, batches = prepared(experiment, size, size)
    weights = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer, average = (
        torch.optim.AdamW(weights, fused=True),
        AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(0.999)),
    )
    task.train()
    clock = Clock()

    def step() -> None:
        batch = clock.run("data", lambda: next(batches))
        loss = clock.run("loss", lambda: task.training_loss(batch)["loss"])
        clock.run("gradients", loss.backward)
        clock.run("optimizer", optimizer.step)
        optimizer.zero_grad(set_to_none=True)
        clock.run("average", lambda: average.update_parameters(task))

    for _ in range(2):
        step()
    clock.seconds.clear()
    for _ in range(count):
        step()
    parts = {name: seconds / count for name, seconds in clock.seconds.items()}
    batch, begin = next(batches), time.perf_counter()  # as the profiler counts
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        task.training_loss(batch)["loss"].backward()
        seconds = time.perf_counter() - begin
    return parts, by_kind(profiler.key_averages(), seconds)


def listed(seconds: dict[str, float]) -> str:
    """Shares, the largest first."""
    total = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in largest if part > 0.005 * total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=DEFAULTS)
    parser.add_argument("--size", type=int, default=48, help="voxels along each axis of the phantoms")
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| experiment | s a step | parts | operations of loss and gradients |\n|---|---|---|---|")
    for experiment in asked.experiments:
        parts, kinds = steps(experiment, asked.size, asked.steps)
        print(f"| {experiment} | {sum(parts.values()):.3f} | {listed(parts)} | {listed(kinds)} |", flush=True)


if __name__ == "__main__":
    main()

"""Mask R-CNN's training step and detection, and how many volumes a second each task's default model answers."""

from __future__ import annotations

import copy

import torch

from gpu_sections.bench import DTYPES, Bench, Figures, Rows
from gpu_sections.defaults import experiments, made
from mask_rcnn import build, objects


def mask_rcnn(bench: Bench) -> Rows:
    """The 3-D detector of `benchmarks/mask_rcnn.py`, 64 objects in 64³."""
    names = ("volume_training", "volume_training_checkpointed", "volume")
    for name in names[:1] if bench.tiny else names:
        for dtype in ("float32",) if bench.tiny else DTYPES:
            yield f"{name} {dtype}", lambda name=name, dtype=dtype: step_of(bench, name, dtype)


def step_of(bench: Bench, name: str, dtype: str) -> Figures:
    torch.manual_seed(0)
    size, count = (16, 4) if bench.tiny else (64, 64)
    training = "training" in name
    network = build(name).to(bench.device).train(training)
    image = torch.randn(1, 1, size, size, size, device=bench.device)
    boxes, masks = objects(3, (size,) * 3, count)
    boxes, masks = [one.to(bench.device) for one in boxes], masks.to(bench.device)

    def learn() -> None:
        with bench.autocast(dtype):
            loss = sum(network.losses(image, boxes, None, masks).values())
        loss.backward()
        network.zero_grad(set_to_none=True)

    def detect() -> None:
        with torch.inference_mode(), bench.autocast(dtype):
            network.detect(image)

    work = learn if training else detect
    return {"ms": 1e3 * bench.seconds(work), "gb": bench.peak_gb(work)}


def volumes_per_second(bench: Bench) -> Rows:
    """A prediction of one volume of 128³ by a new model of each experiment; a reconstruction has slices instead."""
    for experiment in experiments(bench):
        if experiment.endswith("_3d") or bench.tiny:
            for dtype in ("float32",) if bench.tiny else DTYPES:
                yield f"{experiment} {dtype}", lambda experiment=experiment, dtype=dtype: rate(bench, experiment, dtype)


def rate(bench: Bench, experiment: str, dtype: str) -> Figures:
    from voxelry.core.space import Space
    from voxelry.data.collate import collate
    from voxelry.data.sample import Sample

    task, batch = made(experiment, 16 if bench.tiny else 64, 16 if bench.tiny else 64)
    task = copy.deepcopy(task).to(bench.device).eval()
    if not experiment.startswith("reconstruct"):
        shape = (16 if bench.tiny else 128,) * batch.spaces[0].ndim
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(batch.image.shape[1], *shape, generator=generator)
        batch = collate([Sample(image, Space.from_spacing(shape), "random")])
    batch = batch.to(bench.device)

    def answer() -> None:
        with torch.inference_mode(), bench.autocast(dtype):
            task.predict(batch)

    seconds = bench.seconds(answer)
    return {
        "images": "×".join(map(str, batch.image.shape)),
        "per_second": len(batch) / seconds,
        "ms": 1e3 * seconds,
        "gb": bench.peak_gb(answer),
        "calls": task.calls,
    }

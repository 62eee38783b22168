"""Training steps and predictions of every default network, and the originals' U-Net beside MONAI's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gpu_sections.bench import Bench, Figures, Mode, Rows
from gpu_sections.defaults import experiments, made
from unet import build


def default_networks(bench: Bench) -> Rows:
    """Forward and backward of a batch, and a prediction of it, of what each default configuration builds."""
    for experiment in experiments(bench):
        for mode in bench.modes:
            yield f"{experiment} {mode}", lambda experiment=experiment, mode=mode: step_of(bench, experiment, mode)


def step_of(bench: Bench, experiment: str, mode: Mode) -> Figures:
    size = 64 if experiment.endswith("_3d") else 256
    task, batch = made(experiment, 16 if bench.tiny else size, 16 if bench.tiny else size)
    task, batch = copy.deepcopy(task).to(bench.device), batch.to(bench.device)
    mode.place_network(task.network)
    batch.image = mode.place(batch.image)

    def learn() -> None:
        with bench.autocast(mode.dtype):
            loss = task.training_loss(batch)["loss"]
        loss.backward()
        task.zero_grad(set_to_none=True)

    def answer() -> None:
        with torch.inference_mode(), bench.autocast(mode.dtype):
            task.predict(batch)

    figures: Figures = {
        "image": "×".join(map(str, batch.image.shape)),
        "parameters_m": sum(weight.numel() for weight in task.network.parameters()) / 1e6,
        "step_ms": 1e3 * bench.seconds(learn),
        "step_gb": bench.peak_gb(learn),
    }
    task.eval()
    return figures | {
        "predict_ms": 1e3 * bench.seconds(answer),
        "predict_gb": bench.peak_gb(answer),
        "calls": task.calls,
    }


def unet_and_monai(bench: Bench) -> Rows:
    """The originals' U-Net and MONAI's DiffusionModelUNet, in turn, with the ratio in the second of the two rows."""
    for size in (8,) if bench.tiny else (32, 48, 64, 96):
        for mode in bench.modes:
            ours: Figures = {}
            label = f"{size}³ {mode}"
            yield (
                f"voxelry {label}",
                lambda size=size, mode=mode, ours=ours: measured(bench, "voxelry", size, mode, ours),
            )
            yield f"monai {label}", lambda size=size, mode=mode, ours=ours: beside(bench, size, mode, ours)


def measured(bench: Bench, name: str, size: int, mode: Mode, kept: Figures) -> Figures:
    torch.manual_seed(0)
    network: nn.Module = mode.place_network(build(name, "auto", narrow=bench.tiny).to(bench.device)).train()
    x = mode.place(torch.randn(1, 1, size, size, size, device=bench.device))
    time = torch.tensor([10], device=bench.device)

    def learn() -> None:
        with bench.autocast(mode.dtype):
            loss = network(x, time).float().square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    def answer() -> Any:
        with torch.inference_mode(), bench.autocast(mode.dtype):
            return network(x, time)

    kept |= {"step_ms": 1e3 * bench.seconds(learn), "step_gb": bench.peak_gb(learn)}
    network.eval()
    kept |= {"forward_ms": 1e3 * bench.seconds(answer), "forward_gb": bench.peak_gb(answer)}
    return kept


def beside(bench: Bench, size: int, mode: Mode, ours: Figures) -> Figures:
    """MONAI's figures, and ours over them."""
    theirs = measured(bench, "monai", size, mode, {})
    return theirs | {
        f"ours/monai {key}": ours[key] / theirs[key] for key in tuple(theirs) if ours.get(key) and theirs[key]
    }

"""Memory and time of whole training steps of the originals' U-Net in bf16, at the sizes of the originals.

Goals: pretraining at batch 2 of 64³ at most 1.5 GB, landmarks at batch 1 of 64³ with 10 points at most 1 GB,
optimiser (AdamW), gradients and weights included; the pretraining also holds an averaged copy (EMA).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_sections.bench import Bench, Figures, Rows
from voxelry.models.unet import UNet
from voxelry.models.unet.parts import CHECKPOINTING

GOALS_GB = {"pretrain": 1.5, "landmarks": 1.0}


def training_steps(bench: Bench) -> Rows:
    """Both jobs with every way to checkpoint, and compiled where that is asked for."""
    for job in GOALS_GB:
        for policy in CHECKPOINTING[:1] if bench.tiny else CHECKPOINTING:
            yield f"{job} {policy}", lambda job=job, policy=policy: step_of(bench, job, policy, False)
        if bench.compiled:
            yield f"{job} compiled", lambda job=job: step_of(bench, job, "auto", True)


def step_of(bench: Bench, job: str, policy: str, compiled: bool) -> Figures:
    torch.manual_seed(0)
    width, size = (8, 8) if bench.tiny else (64, 64)
    outputs = 10 if job == "landmarks" else 1
    network = UNet(ndim=3, width=width, out_channels=outputs, checkpointing=policy).to(bench.device)
    average = copy.deepcopy(network) if job == "pretrain" else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    run = torch.compile(network) if compiled else network
    losses = []

    def step() -> None:
        with bench.autocast("bf16"):
            loss = loss_of(job, run, size, bench.device)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1e-3)
        losses.append(loss.detach())

    figures: Figures = {"step_ms": 1e3 * bench.seconds(step), "step_gb": bench.peak_gb(step)}
    if bench.device.type == "cuda":
        figures |= {"reserved_gb": torch.cuda.max_memory_reserved(bench.device) / 2**30}
    return figures | {"goal_gb": GOALS_GB[job], "loss": float(losses[-1])}


def loss_of(job: str, network: nn.Module, size: int, device: torch.device) -> Tensor:
    """Loss of one step on random data."""
    if job == "pretrain":
        x = torch.randn(2, 1, size, size, size, device=device)
        return F.mse_loss(network(x, torch.tensor([10, 400], device=device)).float(), torch.randn_like(x))
    logits = network(torch.randn(1, 1, size, size, size, device=device)).flatten(2).float()
    return -logits.log_softmax(dim=2)[:, :, 0].mean()

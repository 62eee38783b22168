"""What a training of both stages will take, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from voxelry.core.memory import available_memory
from voxelry.models.sam3d.net import TwoStageNet

__all__ = ["Step", "memory_plan"]

PARTS = {
    "reader": ("encoder", "decoder", "size_head", "condition", "images"),
    "structure": ("structure",),
    "stage 1": ("structure_flow",),
    "stage 2": ("latent_flow", "points"),
    "surface": ("surface",),
}
STATES = 16  # bytes of a trained number besides itself: gradient, two of Adam, averaged copy
LINEAR = 12  # channels' multiples that a transformer block keeps, besides those between its linear layers
DENSE = 8  # tensors that a residual block of convolutions keeps
SHELL = 2.0  # cells of a surface, in squares of the grid's cells per axis: an organ fills half of its frame
CHILDREN = 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step.

    Attributes:
        batch: prompts.
        draws: times and noises of each, for stage 1.
        surface_items: prompts that stage 2 learns from.
        half: whether activations are of two bytes.
    """

    batch: int = 1
    draws: int = 1
    surface_items: int = 1
    half: bool = False


def memory_plan(network: TwoStageNet, step: Step) -> list[str]:
    """Lines for people: parameters, what is trained, and memory by part; then the sum as it is and as it could be.

    Weights, gradients and the optimiser's states are exact. What is kept for the backward pass is estimated from the
    layers' sizes, of a surface of 2 G² cells, and not for the reader; kernels' work space comes on top.
    """
    lines = ["memory plan (GB): weights, gradients and optimiser, kept for the backward pass"]
    total = 0.0
    activations = _activations(_settings(network), step)
    for part, names in PARTS.items():
        modules = [getattr(network, name) for name in names if getattr(network, name, None) is not None]
        count, trained = _numbers(modules)
        amounts = 4 * count / 1e9, STATES * trained / 1e9, activations.get(part, 0.0) / 1e9
        total += sum(amounts)
        shown = ", ".join(f"{amount:.2f}" for amount in amounts)
        lines.append(f"  {part}: {count / 1e6:.1f} million parameters, {trained / 1e6:.1f} trained: {shown}")
    free = available_memory()
    room = "" if free is None else f" of {free / 1e9:.1f} free"
    lines.append(f"  about {total:.1f}{room}; {_otherwise(network, step, total, sum(activations.values()))}")
    return lines


def _settings(network: TwoStageNet) -> dict[str, Any]:
    """Those of the network, with what it computes again as it is now."""
    known = network.settings()
    parts: dict[str, Any] = {
        "structure_flow": network.structure_flow,
        "latent_flow": network.latent_flow,
        "mesh_decoder": network.surface.decoder,
    }
    return known | {name: {**known[name], "checkpointing": part.checkpointing} for name, part in parts.items()}


def _otherwise(network: TwoStageNet, step: Step, total: float, kept: float) -> str:
    """The sum with half the bytes, with checkpointing, with an adapter."""
    settings = _settings(network)
    count, trained = _numbers([network])
    parts = ("structure_flow", "latent_flow", "mesh_decoder")
    again = {name: {**settings[name], "checkpointing": True} for name in parts}
    less = sum(_activations({**settings, **again}, step).values())
    choices = {
        "model.*.checkpointing": total + (less - kept) / 1e9,
        "an adapter of rank 4": total - STATES * max(trained - 0.02 * count, 0) / 1e9,
    }
    if not step.half:
        choices["trainer.precision=bf16-mixed"] = total - kept / 2e9
    return ", ".join(f"with {name} {amount:.1f}" for name, amount in choices.items())


def _numbers(modules: list[nn.Module]) -> tuple[int, int]:
    """All and trained."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _activations(settings: Mapping[str, Any], step: Step) -> dict[str, float]:
    """Bytes kept by each part."""
    size = 2 if step.half else 4
    first, second, mesh, dense = (
        settings[name] for name in ("structure_flow", "latent_flow", "mesh_decoder", "structure")
    )
    cells = SHELL * mesh["grid"] ** 2 * step.surface_items
    widths = [*(second["widths"] or ()), second["channels"]]
    # a level has an eighth of a volume's cells, but a quarter of a surface's
    levels = sum(DENSE * 2 * second["blocks"] * width * cells / 4**place for place, width in enumerate(widths))
    finer = sum(DENSE * width * cells * CHILDREN ** (place + 1) for place, width in enumerate(mesh["widths"]))
    voxels = mesh["grid"] ** 3 * step.batch
    each = [width * voxels / CHILDREN**place for place, width in enumerate(dense["widths"])]
    grids = DENSE * 2 * dense["blocks"] * sum(each)
    values = {
        "structure": grids,
        "stage 1": _blocks(first, first["grid"] ** 3 * step.batch * step.draws),
        "stage 2": levels + _blocks(second, cells / 4 ** (len(widths) - 1)),
        "surface": finer + _blocks(mesh, cells),
    }
    return {name: size * value for name, value in values.items()}


def _blocks(settings: Mapping[str, Any], tokens: float) -> float:
    """Numbers that a transformer's blocks keep."""
    block = tokens * settings["channels"] * (LINEAR + 2 * settings["mlp_ratio"])
    if settings["checkpointing"]:
        return block + settings["depth"] * tokens * settings["channels"]
    return float(settings["depth"] * block)

"""Whether a plan fits the memory, and what would make it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from voxelry.core.errors import ConfigError
from voxelry.engine.plan.memory import modelled
from voxelry.engine.plan.situation import Situation, seen_at_once
from voxelry.engine.plan.size_rules import gigabytes, step_of
from voxelry.engine.plan_file import Decision, in_yaml

__all__ = ["check_fits"]

_HELPING = 3


def check_fits(situation: Situation) -> None:
    """Refuse a plan whose training can't fit, which happens where settings are given.

    Raises:
        ConfigError: says what is needed, what there is, and the three settings that help most.
    """
    needed, allowed = _needed(situation), situation.machine.training_memory
    if needed is None or needed <= allowed:
        return
    found = [(_needed(situation.after(one)) or needed, one) for one in _lighter(situation)]
    helping = sorted((pair for pair in found if pair[0] < needed), key=lambda pair: pair[0])[:_HELPING]
    listed = ", ".join(f"{one.setting}={in_yaml(one.value)} ({gigabytes(left)})" for left, one in helping)
    raise ConfigError(
        f"memory: a training step takes about {gigabytes(needed)}, and there are {gigabytes(allowed)}; "
        + (f"what helps most: {listed}" if helping else "expected a machine with more")
    )


def _needed(situation: Situation) -> int | None:
    network = modelled(situation)
    return None if network is None else network.training(seen_at_once(situation), situation.config.data.batch_size)


def _lighter(situation: Situation) -> Iterator[Decision]:
    """Each setting that decides about memory, at half of what it is."""
    config, batch = situation.config, int(situation.config.data.batch_size)
    if batch > 1:
        yield Decision("data.batch_size", batch // 2)
    size: Any = [
        max(step, side // 2 // step * step) for side, step in zip(seen_at_once(situation), step_of(config), strict=True)
    ]
    if "patches" in config.data and config.data.get("slices") is None and tuple(size) < seen_at_once(situation):
        yield Decision("data.patches", {"size": size})
    width = OmegaConf.select(config, "model.width")
    if width is not None and width > 1:
        yield Decision("model.width", width // 2)
    again = OmegaConf.select(config, "model.checkpointing")
    if again is False or again in ("auto", "none", "norms"):
        yield Decision("model.checkpointing", True if again is False else "blocks")

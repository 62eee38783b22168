"""What speaks against a plan: settings that don't go together, and data that are odd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from omegaconf import DictConfig

from voxelry.engine.plan import size_rules
from voxelry.engine.plan.memory import Measured, Modelled
from voxelry.engine.plan.situation import Situation, length, listed, seen_at_once

__all__ = ["contradictions"]

_NAMED = 4  # cases in a line


def contradictions(situation: Situation, network: Modelled | Measured | None) -> Iterator[str]:
    """One line for each; nothing where all is well.

    Args:
        situation: with every decision made.
        network: whose memory is told, if it can be.
    """
    yield from _of_data(situation)
    config, size = situation.config, seen_at_once(situation)
    step = size_rules.step_of(config)
    windows = isinstance(config.data.get("patches"), DictConfig)
    if windows and any(part % own for part, own in zip(size, step, strict=True)):
        yield f"data.patches.size: {listed(size)} are no multiples of {listed(step)}, so the network pads them"
    if config.trainer.max_epochs is not None and "trainer.max_steps" in situation.given:
        yield "trainer.max_steps: trainer.max_epochs is set, too, and counts"
    objects = situation.data.object_sizes()
    if windows and len(objects):
        extent = float(np.prod(np.array(size) * situation.spacing) ** (1 / len(size)))
        large = float(np.percentile(objects, 95))
        if large > extent:
            yield f"data.patches.size: windows of {length(extent)} cut objects of {length(large)}"
    if network is not None:
        needed = network.training(size, config.data.batch_size)
        allowed = situation.machine.training_memory
        if needed > size_rules.SHARE * allowed:
            yield (
                f"memory: a training step takes about {size_rules.gigabytes(needed)} of "
                f"{size_rules.gigabytes(allowed)}, which is close"
            )


def _of_data(situation: Situation) -> Iterator[str]:
    data = situation.data
    for names in data.duplicates:
        yield f"data: {_named(names)}: the same pixels"
    empty = [case.name for case in data.cases if case.empty]
    if empty:
        yield f"data: {_named(empty)}: all sampled values are one"
    if others := data.unlike_ct:
        low, high = min(case.quantiles[0] for case in others), max(case.quantiles[-1] for case in others)
        yield (
            f"data: {_named([case.name for case in others])}: values from {low:g} to {high:g} don't look like CT, as "
            f"those of {len(data.sampled) - len(others)} others do; another modality, or an offset that the file "
            "doesn't tell"
        )
    if situation.oversized and not situation.is_for_crops:
        yield f"data: {_named(situation.oversized)}: larger than the memory"
    if data.inverted:
        yield f"data: {_named(data.inverted)}: bright where the others are dark, perhaps inverted"
    placed = sum(case.placed for case in situation.cases)
    if 0 < placed < len(situation.cases):
        bare = [case.name for case in situation.cases if not case.placed]
        yield (
            f"data: {_named(bare)}: {len(bare)} of {len(situation.cases)} images don't say how large their voxels are; "
            "expected all or none (data.options={spacing: ...} says it)"
        )
    other = [case.name for case in data.readable if len(case.shape) != situation.config.ndim]
    if other:
        yield f"data: {_named(other)}: of another rank than {situation.config.ndim}"


def _named(cases: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    return ", ".join(cases[:_NAMED]) + f" and {len(cases) - _NAMED} more" * (len(cases) > _NAMED)

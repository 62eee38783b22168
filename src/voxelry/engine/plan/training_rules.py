"""Decisions about the course of a training: how long, in which precision, with how many readers, and what beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import sqrt

from omegaconf import OmegaConf

from voxelry.engine.pace import EPOCH
from voxelry.engine.plan.situation import Situation
from voxelry.engine.plan_file import Decision
from voxelry.engine.precision import resolve_precision

__all__ = ["beside", "course", "readers"]

_USUAL_CASES = 50  # that the experiments' numbers of steps are for
_LEAST, _MOST = 0.5, 5.0  # times the experiment's steps
_VALIDATIONS = 10
_READERS = 8


def course(situation: Situation) -> Iterator[Decision]:
    """Steps by the number of cases, or the time that is given, and how often the training is looked at."""
    trainer = situation.config.trainer
    if trainer.max_epochs is not None or not situation.is_open("trainer.max_steps"):
        return
    if trainer.max_minutes is not None:
        yield Decision("trainer.max_steps", None, f"the training ends after {trainer.max_minutes:g} minutes")
        return
    count = situation.training_cases
    factor = min(_MOST, max(_LEAST, sqrt(count / _USUAL_CASES)))
    steps = max(1, round(trainer.max_steps * factor / 100)) * 100
    yield Decision(
        "trainer.max_steps", steps, f"{count} cases to learn from; {trainer.max_steps} are for {_USUAL_CASES}"
    )
    for setting in ("trainer.validate_every", "trainer.checkpoint_every"):
        if situation.is_open(setting) and OmegaConf.select(situation.config, setting) != EPOCH:
            yield Decision(setting, max(1, steps // _VALIDATIONS), f"{_VALIDATIONS} times in the training")


def readers(situation: Situation) -> Iterator[Decision]:
    """The precision of the device, and the processes that read."""
    trainer, machine = situation.config.trainer, situation.machine
    if situation.is_open("trainer.precision"):
        precision = resolve_precision("bf16-mixed" if machine.fast_half else "32-true", trainer.accelerator)
        device = machine.gpu or "this processor"
        told = "multiplies bfloat16 in hardware" if machine.fast_half else "is no faster in bfloat16"
        yield Decision("trainer.precision", precision, f"{device} {told}")
    if situation.is_open("data.num_workers"):
        count = min(_READERS, machine.cores - 1) if machine.gpu else 0
        why = f"{machine.cores} cores of {os.cpu_count()}" if machine.gpu else "the cores learn, on a processor"
        yield Decision("data.num_workers", count, why)


def beside(situation: Situation) -> Iterator[Decision]:
    """No second network to compare with where time is short: it takes half of the steps."""
    baseline = OmegaConf.select(situation.config, "task.baseline")
    if baseline is True and situation.is_open("task.baseline") and not situation.machine.gpu:
        yield Decision(
            "task.baseline", False, "a processor has time for one network; true trains plain regression beside it"
        )

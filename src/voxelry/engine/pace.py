"""How many optimizer steps a run takes, and when it validates and saves, from the `trainer` part of its configuration.

A run counts optimizer steps. Where an epoch is to be an epoch (`trainer.max_epochs`, or `trainer.close_epochs=true`),
every pass over the training cases ends with a step, even if fewer batches than `trainer.grad_accumulation` are left
for it, and validations fall on the ends of passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import DictConfig

from voxelry.core.errors import ConfigError

__all__ = ["EPOCH", "Pace", "pace"]

EPOCH = "epoch"


@dataclass(frozen=True)
class Pace:
    """The rhythm of one run.

    Attributes:
        max_steps: optimizer steps of the whole run; None where time alone limits it.
        validate_every: optimizer steps between two validations.
        checkpoint_every: optimizer steps between two writings of `last.ckpt`.
        closed: a pass over the training cases ends with an optimizer step.
    """

    max_steps: int | None
    validate_every: int
    checkpoint_every: int
    closed: bool


def pace(trainer: DictConfig, *, cases: int, batch_size: int, world_size: int = 1) -> Pace:
    """The rhythm of a run over so many training cases.

    Args:
        trainer: as `configs/trainer/default.yaml`.
        cases: in a pass, of all processes together.
        batch_size: of one process.

    Raises:
        ConfigError: nothing says when the run ends.
    """
    batches = math.ceil(math.ceil(cases / world_size) / batch_size)
    epoch = math.ceil(batches / trainer.grad_accumulation)
    if trainer.max_epochs is not None:
        max_steps = max(1, math.ceil(trainer.max_epochs * epoch))
    elif trainer.max_steps is None and trainer.max_minutes is None:
        raise ConfigError("trainer.max_steps: expected a number, or trainer.max_minutes or trainer.max_epochs")
    else:
        max_steps = trainer.max_steps
    closed = trainer.max_epochs is not None or bool(trainer.close_epochs)
    validate = epoch if trainer.validate_every == EPOCH else trainer.validate_every
    epochs = max(1, round(validate / epoch))
    return Pace(
        max_steps=max_steps,
        validate_every=epochs * epoch if closed else validate,
        checkpoint_every=epoch if trainer.checkpoint_every == EPOCH else trainer.checkpoint_every,
        closed=closed,
    )

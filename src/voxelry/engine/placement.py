"""Where one process of a training stands among those that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """One of `world_size` processes; a launcher makes one for each of them.

    Attributes:
        rank: this process's number, from 0; the first one alone writes the bundle and the report.
        world_size: processes in all.
        trainer: further keywords of `lightning.pytorch.Trainer`, such as the strategy.
        restored: a checkpoint of this very run to go on from, whatever `resume` says.
        admitted: the run's folder was looked at before; what lies there may be of an attempt that was lost.
        saved: called in every process when a checkpoint to go on from was written.
    """

    rank: int = 0
    world_size: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)
    restored: Path | None = None
    admitted: bool = False
    saved: Callable[[pl.Trainer, Path], None] | None = None

    @contextmanager
    def first_one_alone(self) -> Iterator[None]:
        """Let the others in when process 0 has left: what it put into a shared cache is then there for them."""
        from torch import distributed

        if self.rank:
            distributed.barrier()
        yield
        if self.world_size > 1 and not self.rank:
            distributed.barrier()

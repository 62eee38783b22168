"""When a run validates, and on how many cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from voxelry.tasks.base import SHARE, STEP_COST

__all__ = ["LEAST", "ValidatedCases", "Validations"]

LEAST = 5  # of a run, however short
FEWEST = 4  # cases


class Validations:
    """Every so many optimizer steps, and at each fifth of the run that would pass with fewer than one for each.

    Args:
        every: optimizer steps between two validations.
        least: validations of the whole run; 0 for no more than those.
    """

    def __init__(self, every: int, least: int = LEAST):
        self.every, self.least = every, least
        self._part, self._done = 0, 0

    def due(self, step: int, progress: float) -> bool:
        """Whether a validation follows this optimizer step; asked once for each of them.

        Args:
            step: optimizer steps that are done, from 1.
            progress: share of the run's steps or minutes that is spent, in [0, 1].
        """
        part = int(self.least * progress + 1e-6)
        before, self._part = self._part, part
        due = step % self.every == 0 or before < part > self._done
        self._done += due
        return due

    def state_dict(self) -> dict[str, Any]:
        """The fifth that the run is in, and the validations so far."""
        return {"part": self._part, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._part, self._done = state["part"], state["done"]


class ValidatedCases:
    """The places of the cases that validations measure, the same in each of them; a sampler for the loader.

    Args:
        cases: that there are.
        limit: how many to measure, None for all, or auto: as many as take a tenth of the work that the training did
            until its first validation, but four at least; see `settle`.
        rank, world_size: of this process, and how many share the cases.
        seed: draws which they are.

    Attributes:
        count: how many all processes measure together, None while that isn't settled.
    """

    def __init__(
        self, cases: int, limit: int | Literal["auto"] | None, *, rank: int = 0, world_size: int = 1, seed: int = 0
    ):
        self.cases, self.rank, self.world_size = cases, rank, world_size
        self.count = min(cases, limit or cases) if limit != "auto" else cases if cases <= FEWEST else None
        self._order = list(range(cases))
        if self.count != cases:
            self._order = torch.randperm(cases, generator=torch.Generator().manual_seed(seed)).tolist()

    def __iter__(self) -> Iterator[int]:
        """Places of this process; where none is left for it, another one's, since all validate together."""
        place = self.rank
        while place < (self.cases if self.count is None else self.count) or place == self.rank:
            yield self._order[place % self.cases]
            place += self.world_size

    def __len__(self) -> int:
        left = (self.cases if self.count is None else self.count) - self.rank
        return max(1, -(-left // self.world_size))

    def settle(self, trained: float, case: float) -> int:
        """Decide how many, once.

        Args:
            trained: work of the forward passes of the training until now, in this process.
            case: work that predicting a case takes.

        Returns:
            How many are measured.
        """
        if self.count is None:
            paid = int(SHARE * STEP_COST * trained * self.world_size / case) if case else self.cases
            self.count = min(self.cases, max(FEWEST, paid))
        return self.count

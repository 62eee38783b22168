"""When a run validates."""

from __future__ import annotations

from typing import Any

__all__ = ["LEAST", "Validations"]

LEAST = 5  # of a run, however short


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

"""Guidance without a classifier: away from what would be answered without the condition.

Ho & Salimans 2022 (arXiv:2207.12598, eq. 6) on velocities, `(1 + s) * conditional - s * unconditional`, within an
interval of times alone (Kynkäänniemi et al. 2024, arXiv:2404.07724), and with a strength of its own for each kind of
latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.diffusion.latents import Latents

__all__ = ["Guidance", "guided", "guided_twice"]

SLACK = 1e-6  # of a time: ends of an interval belong to it, whatever the rounding


@dataclass(frozen=True)
class Guidance:
    """How strongly, and when.

    Attributes:
        strength: 0 for none; one number, or one for each kind of latents (none for a kind that isn't named).
        interval: times in [0, 1] between which guidance is on, both included, 1 being noise; one pair, or one for
            each kind; None switches it off.

    Raises:
        SettingError: an interval that is no lower and a higher time.
    """

    strength: float | Mapping[str, float] = 0.0
    interval: Sequence[float] | Mapping[str, Sequence[float]] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        pairs = self.interval.values() if isinstance(self.interval, Mapping) else [self.interval]
        for pair in pairs:
            if pair is not None and (len(pair) != 2 or pair[0] > pair[1]):
                raise SettingError(f"interval: expected a lower and a higher time, got {pair}")

    def strengths(self, t: float, names: Iterable[str]) -> dict[str, float]:
        """Of each kind at a time; 0 outside of the interval."""
        found = {}
        for name in names:
            pair = self.interval.get(name) if isinstance(self.interval, Mapping) else self.interval
            strength = self.strength.get(name, 0.0) if isinstance(self.strength, Mapping) else self.strength
            inside = pair is not None and pair[0] - SLACK <= t <= pair[1] + SLACK
            found[name] = float(strength) if inside else 0.0
        return found


def guided(conditional: Latents, unconditional: Latents, strengths: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
    """Velocities led away from the unconditional ones; kinds of strength 0 or none stay as they are."""
    return {
        name: each if name not in strengths else (1 + strengths[name]) * each - strengths[name] * unconditional[name]
        for name, each in conditional.items()
    }


def guided_twice(
    conditional: Latents, partial: Latents, unconditional: Latents, *, strength: float, partial_strength: float
) -> dict[str, Tensor]:
    """Velocities led away from those without any condition, and again from those without a part of it.

    `u + (1 + s) (p - u) + (1 + q) (c - p)` for conditional `c`, partly conditional `p`, unconditional `u`
    (Brooks et al. 2022, arXiv:2211.09800, eq. 3, with strengths counted from 0).

    Args:
        conditional: with the whole condition.
        partial: with a part of it left out, such as the pointmap.
        unconditional: with none.
        strength: s.
        partial_strength: q.
    """
    found = {}
    for name, whole in conditional.items():
        part, none = partial[name], unconditional[name]
        found[name] = none + (1 + strength) * (part - none) + (1 + partial_strength) * (whole - part)
    return found

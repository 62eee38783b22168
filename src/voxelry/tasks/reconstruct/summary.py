"""All prompts of an evaluation in a few numbers, together and organ by organ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["summarise"]

Rows = Sequence[Mapping[str, float | str]]


def summarise(rows: Rows) -> dict[str, float]:
    """Means over the rows of every number, leaving out NaN; and of each organ, where rows have several.

    Args:
        rows: of prompts, with `name`, `dice` and, where organs are to be told apart, `organ`.

    Returns:
        The means by name. `dice_low` and `dice_high` bound that of `dice` at 95 %, by drawing cases anew: prompts of
        one case aren't independent. Of an organ they are `ORGAN/dice` and so on, and `ORGAN/prompts`.
    """
    result = _means(rows)
    if not rows:
        return {"dice": math.nan}
    dice = np.array([float(row["dice"]) for row in rows])
    cases, place = np.unique([str(row["name"]) for row in rows], return_inverse=True)
    drawn = np.random.default_rng(0).integers(len(cases), size=(2000, len(cases)))
    means = np.bincount(place, weights=dice)[drawn].sum(axis=1) / np.bincount(place)[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return result | {"dice_low": float(low), "dice_high": float(high)} | _by_organ(rows)


def _by_organ(rows: Rows) -> dict[str, float]:
    """Means over the rows of each organ; nothing where there is one organ only."""
    organs = list(dict.fromkeys(str(row["organ"]) for row in rows if "organ" in row))
    result: dict[str, float] = {}
    for organ in organs if len(organs) > 1 else []:
        own = [row for row in rows if row.get("organ") == organ]
        result[f"{organ}/prompts"] = float(len(own))
        result |= {f"{organ}/{name}": mean for name, mean in _means(own).items()}
    return result


def _means(rows: Rows) -> dict[str, float]:
    result = {}
    for name in dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, str)):
        values = np.array([float(row.get(name, math.nan)) for row in rows])
        known = values[np.isfinite(values)]
        result[name] = float(known.mean()) if known.size else math.nan
    return result

"""Feature maps that are made again from others that are kept anyway.

The sum at the end of a residual block is cheap to repeat from its two terms, so whoever needs it in the
backward pass keeps the recipe instead of the result. A recipe travels as an attribute of its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["MINIMUM_BYTES", "Recipe", "attach", "recipe_of"]

MINIMUM_BYTES = 1 << 24  # smaller maps are kept: repeating them costs more than it saves


class Recipe(NamedTuple):
    """A function of tensors and the tensors, for `save_for_backward`."""

    make: Callable[[Sequence[Tensor]], Tensor]
    parts: tuple[Tensor, ...]


def recipe_of(x: Tensor) -> Recipe:
    """How to have `x` in the backward pass: its recipe, or itself."""
    found: Recipe | None = getattr(x, "_recipe", None)
    return Recipe(lambda parts: parts[0], (x.detach(),)) if found is None else found


def attach(x: Tensor, recipe: Recipe) -> Tensor:
    """Let users of `x` know how to make it again, if it is large enough."""
    if x.numel() * x.element_size() >= MINIMUM_BYTES:
        x._recipe = recipe  # type: ignore[attr-defined]
    return x

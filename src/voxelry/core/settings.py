"""Settings as JSON and YAML know them, so that what a bundle stores builds the same thing again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["keywords", "plain"]


def plain(value: Any) -> Any:
    """Mappings as dicts with text for keys, sequences but text as lists, NumPy's values as Python's, at any depth.

    Everything else stays as it is.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return value
    return [plain(item) for item in value]


def keywords(node: Mapping[str, Any] | None) -> dict[str, Any]:
    """A part of a configuration as keywords of what it describes: plain values, without `_target_`; {} for None."""
    return {} if node is None else {name: value for name, value in plain(node).items() if name != "_target_"}

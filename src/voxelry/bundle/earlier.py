"""What earlier versions wrote of a network, read as this one has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from voxelry.models.mask_rcnn.settings import nested

__all__ = ["network_of_today"]

_READERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"mask_rcnn": nested}


def network_of_today(description: Any) -> Any:
    """A network's name and settings as `bundle.bundle.describe` gives them today; what isn't a mapping stays."""
    if not isinstance(description, Mapping):
        return description
    return _READERS.get(str(description.get("name")), dict)(description)

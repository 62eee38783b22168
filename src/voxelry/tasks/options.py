"""What predictions of each task may be asked for beside the image; nothing heavy is imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.option import Option
from voxelry.core.registry import Registry

__all__ = ["OPTIONS", "named_files", "takers"]

OPTIONS: Registry[tuple[Option, ...]] = Registry(
    "options",
    "options of the task",
    {
        "translate": "voxelry.tasks.translate.options:OPTIONS",
        "reconstruct": "voxelry.tasks.reconstruct.options:OPTIONS",
        "reconstruct_flow": "voxelry.tasks.reconstruct.options:FLOW_OPTIONS",
        "reconstruct_sam3d": "voxelry.tasks.reconstruct.options:FLOW_OPTIONS",
    },
)
"""By the task's name; a task without any needs no entry."""


def takers(option: str) -> list[str]:
    """The tasks that take an option of that name."""
    return [task for task in OPTIONS if any(one.name == option for one in OPTIONS[task])]


def named_files(options: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The images that options name in place of an input, by the option's name."""
    found = {}
    for option in (one for task in OPTIONS for one in OPTIONS[task]):
        if option.files is not None and options.get(option.name) is not None:
            found[option.name] = option.files(options[option.name])
    return found

"""A folder looked at as the training of a task would, before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from voxelry.bundle.registry import recipe_named
from voxelry.core.remote import as_path
from voxelry.data.demands import Demands
from voxelry.data.doctor.diagnosis import Diagnosis
from voxelry.data.doctor.inspect import inspect
from voxelry.data.doctor.pairs import holds_pairs, inspect_pairs
from voxelry.data.doctor.prepared import inspect_prepared
from voxelry.data.layouts.prepared import MANIFEST, is_prepared_folder

__all__ = ["demands_of", "diagnose"]


def diagnose(
    path: str | PathLike[str],
    *,
    task: str | None = None,
    layout: str = "auto",
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    point_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """What is in a folder, and what keeps a task from being trained on it; of a prepared one its slices, too.

    Args:
        path, layout, options, point_options, progress: as in `voxelry.data.doctor.inspect`.
        task: the name of one; its errors are what a training with the default settings refuses. None: the folder is
            held to what it has, pairs, points or labels.
        target: of pairs, see `voxelry.data.doctor.pairs.inspect_pairs`.

    Raises:
        FileError: `path` does not exist.
        SettingError: an unknown task, layout or target.
    """
    demands = None if task is None else demands_of(task)
    if (demands is None or demands.contrast) and holds_pairs(path, layout):
        return inspect_pairs(
            path, layout=layout, target=target, options=options, to_train=task is not None, progress=progress
        )
    found = inspect(
        path,
        demands=demands,
        layout=layout,
        options=None if options is None else dict(options),
        point_options=None if point_options is None else dict(point_options),
        progress=progress,
    )
    root = as_path(path)
    if layout in ("auto", "prepared") and (root / MANIFEST).is_file() and is_prepared_folder(root):
        inspect_prepared(found, root)
    return found


def demands_of(task: str) -> Demands:
    """What a task asks of its cases.

    Raises:
        SettingError: there is no such task.
    """
    found: Demands = recipe_named(task).demands()
    return found

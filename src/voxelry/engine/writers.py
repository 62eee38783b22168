"""From a task's prediction to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxelry.core.errors import FileError, SettingError
from voxelry.data.sample import Sample

__all__ = ["writer_for"]

Writer = Callable[[Any, Sample, Path], Path]


def writer_for(task: str, format: str) -> Writer:
    """What writes a prediction for an image as it was read into a folder, and answers the file.

    Args:
        task: the task's name in a bundle.
        format: of landmark files, a suffix such as `mrk.json`; other tasks write NIfTI.

    Raises:
        SettingError: the task writes no files.
    """
    if task == "landmarks":
        return lambda prediction, sample, folder: _landmarks(prediction, sample, folder, format)
    if task == "pretrain":
        return _reconstruction
    raise SettingError(f"task: {task!r} writes no predictions")


def _landmarks(prediction: Any, sample: Sample, folder: Path, format: str) -> Path:
    from voxelry.data.io import write_landmarks
    from voxelry.tasks.landmarks import to_landmark_set

    _make(folder)
    path = folder / f"{sample.name}.{format}"
    return write_landmarks(path, to_landmark_set(prediction), space=sample.space, format=format)


def _reconstruction(prediction: Any, sample: Sample, folder: Path) -> Path:
    from voxelry.tasks.pretrain.predict import write_reconstruction

    _make(folder)
    return write_reconstruction(prediction, folder)[-1]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(folder, f"the folder can't be made: {error.strerror or error}") from error

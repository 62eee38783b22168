"""Predictions for files: any reader's format in, the task's files out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model
from voxelry.core.errors import DataError, SettingError, VoxelryError
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.nnunet import files_of_cases
from voxelry.engine.jobs import Places, PredictionJob
from voxelry.engine.keeper import Keeper, Parts, Pool
from voxelry.engine.ledger import Ledger
from voxelry.engine.outcome import Outcome
from voxelry.io import open_image

__all__ = ["predict_files"]


def predict_files(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[Path], None] | None = None,
    tiles: Parts | None = None,
    pool: Pool | None = None,
) -> Outcome:
    """Predict every file that isn't predicted yet; one that fails is noted and the rest is done.

    What was predicted before from the same input with the same model and options is kept, see `engine.ledger`.
    For a model of several channels the files of a case as nnU-Net names them, `NAME_0000.nii.gz` and so on, are one
    image, whose first is the one that is written or failed.

    Args:
        format: suffix of the files, one of those that the task has; its first by default.
        options: of the task, and for the images' reader.
        progress: called after every file.
        tiles: called within a file that is predicted tile by tile, with the tiles that are done and all of them.
        pool: who predicts, such as `engine.ray_pool.RayPool`; None: this process, one file after the other.

    Raises:
        SettingError: the task writes no files in that format, has no such option, or lacks one that it needs.
        FileError: the folder can't be written, or its ledger is damaged or of another version.
    """
    recipe = model.recipe
    recipe.split(options or {})
    chosen = recipe.formats[0] if format is None else format.lstrip(".")
    if chosen not in recipe.formats:
        raise SettingError(f"format: {recipe.name} is written as one of {', '.join(recipe.formats)}, got {format!r}")
    images = list(_images(model, list(dict.fromkeys(paths)), options or {}))
    with Ledger(out) as ledger:
        job = partial(_job, format=chosen, options=options or {}, places=Places.of(ledger))
        keeper = Keeper(ledger, model.digest(), progress)
        jobs = [job(*image) for image in images]
        keeper.run(jobs, model, tiles, pool)
    return Outcome([keeper.rows[one.key] for one in jobs])


def _job(
    path: Path, others: Sequence[Path], *, format: str, options: Mapping[str, Any], places: Places
) -> PredictionJob:
    own = {**options, "channel_files": [file.name for file in others]} if others else options
    return PredictionJob(path, tuple(others), case_name(path), places, own, format)


def _images(model: Model, paths: Sequence[Path], options: Mapping[str, Any]) -> Iterator[tuple[Path, list[Path]]]:
    """Each image's file, and those beside it that hold its further channels."""
    channels = model.recipe.image_channels(model.task)
    cases = [[path] for path in paths]
    if channels > 1 and "channel_files" not in options:
        with suppress(DataError):  # they are refused one by one
            cases = files_of_cases(paths)
    for first, *others in cases:
        if len(others) + 1 == channels > 1 and _has_one_channel(first, model.recipe.split(options)[1]):
            yield first, others
        else:
            yield from ((path, []) for path in (first, *others))


def _has_one_channel(path: Path, reading: Mapping[str, Any]) -> bool:
    """Whether an image can be one channel of several, not a whole case whose name happens to end with a number."""
    with suppress(VoxelryError, OSError):  # it is refused when it is predicted
        return open_image(path, **reading).channels == 1
    return False

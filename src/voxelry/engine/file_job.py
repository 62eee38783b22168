"""One file of a prediction of many: what it depends on, and how it is done, in this process or another."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import voxelry
from voxelry.bundle.model import Model
from voxelry.core.atomic import staged
from voxelry.core.errors import FileError, VoxelryError
from voxelry.data.cache import content_hash, stamps
from voxelry.data.layouts.files import visible
from voxelry.engine.ledger import Dependencies, Made
from voxelry.engine.shortage import is_shortage
from voxelry.io.images.image import split_dataset

__all__ = ["FileJob", "dependencies", "run_job", "run_parts"]

_ATTEMPTS = 3  # processes that may end while they work on a file, until it counts as failed


@dataclass(frozen=True)
class FileJob:
    """A file to predict.

    Attributes:
        path: the file.
        others: files beside it that hold further channels.
        name: of its outputs, without suffixes.
        options: of the task, and for the images' reader.
        format: suffix of what is written.
        out: where its outputs come to lie.
        staging: where they lie until they are complete.
        parts: where finished parts are kept until all are done.
    """

    path: Path
    others: tuple[Path, ...]
    name: str
    options: Mapping[str, Any]
    format: str
    out: Path
    staging: Path
    parts: Path


def run_job(model: Model[Any], job: FileJob, progress: Callable[[int, int], None] | None = None) -> Made:
    """Predict a file; what a user can cause is an answer, too.

    Args:
        progress: see `Recipe.predict_file`.
    """
    started = time.monotonic()
    folder, error, main = job.staging, "", ""
    outputs: dict[str, str] = {}
    try:
        folder = _attempt(job)
        with staged(folder, job.out):
            main = model.recipe.predict_file(
                model, job.path, folder, format=job.format, options=job.options, parts=job.parts, progress=progress
            ).name
        outputs = {entry.name: content_hash(entry) for entry in visible(folder)}
    except VoxelryError as fault:
        error = str(fault).replace(str(folder), str(job.out))
    except Exception as fault:
        if not is_shortage(fault):
            raise
        error = f"{job.path}: needs more memory than there is"
    return Made(str(folder), main, outputs, time.monotonic() - started, error)


def run_parts(model: Model[Any], job: FileJob, numbers: range) -> None:
    """Do some parts of a file, see `Recipe.predict_parts`; what a user can cause is told when the file itself is done.

    Raises:
        Exception: anything else.
    """
    try:
        model.recipe.predict_parts(model, job.path, job.parts, numbers, options=job.options)
    except VoxelryError:
        return
    except Exception as fault:
        if not is_shortage(fault):
            raise


def _attempt(job: FileJob) -> Path:
    """A folder of this attempt's own: an earlier one's process has ended, or can't be heard of any more.

    Raises:
        FileError: too many have ended.
    """
    for number in range(_ATTEMPTS):
        folder = job.staging / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise FileError(job.out, f"the folder can't be written: {error.strerror or error}") from error
        return folder
    raise FileError(job.path, f"{_ATTEMPTS} processes ended while they worked on it, perhaps for memory")


def dependencies(job: FileJob, model: str) -> Dependencies:
    """What the outputs of a file depend on.

    Args:
        model: the digest of the model.
    """
    inputs = [job.path, *job.others, *_paths(job.options)]
    try:
        files = json.dumps([stamps(split_dataset(path)[0]) for path in inputs])
    except FileError:  # it is told when the file is read
        files = ""
    settings = {"format": job.format, **{name: _plain(value) for name, value in sorted(job.options.items())}}
    return Dependencies(
        input=str(job.path.absolute()),
        files=files,
        model=model,
        settings=json.dumps({**settings, "voxelry": voxelry.__version__}),
    )


def _paths(value: Any) -> Iterator[Path]:
    """The files that options name."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _paths(one)


def _plain(value: Any) -> Any:
    """An option as JSON can hold it; of an array its digest."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | Tensor):
        array = np.ascontiguousarray(value.cpu() if isinstance(value, Tensor) else value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Sequence):
        return [_plain(one) for one in value]
    return repr(value)

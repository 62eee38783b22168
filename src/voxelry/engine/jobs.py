"""One piece of work of many: what it depends on, and how it is done, in this process or another."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

import voxelry
from voxelry.bundle.model import Model
from voxelry.core.atomic import staged
from voxelry.core.errors import FileError, VoxelryError
from voxelry.data.cache import content_hash, stamps
from voxelry.data.layouts.files import visible
from voxelry.engine.ledger import Dependencies, Ledger, Made
from voxelry.engine.shortage import is_shortage
from voxelry.io.images.image import split_dataset

__all__ = ["Job", "Places", "PredictionJob", "dependencies", "run_job", "run_parts"]

_ATTEMPTS = 3  # processes that may end while they work on a file, until it counts as failed


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that the jobs of a command share.

    Attributes:
        out: where outputs come to lie.
        staging: where they lie until they are complete, in a folder for each job.
        parts: where finished parts are kept until all of a job are done, in a folder for each.
    """

    out: Path
    staging: Path
    parts: Path

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Those of a ledger."""
        return cls(ledger.folder, ledger.staging, ledger.parts())


@dataclass(frozen=True, slots=True)
class Job(ABC):
    """A piece of work with outputs of its own; it travels to other processes.

    Attributes:
        path: the file that it is about.
        others: files beside it that hold further channels.
        name: of its outputs, without suffixes.
        places: folders.
    """

    path: Path
    others: tuple[Path, ...]
    name: str
    places: Places

    @abstractmethod
    def make(self, model: Model[Any], folder: Path, progress: Callable[[int, int], None] | None) -> Path:
        """Write the outputs into a folder and answer the main one.

        Args:
            progress: called with the parts that are done and all of them, by work that goes part by part.

        Raises:
            VoxelryError: whatever a user can cause.
        """

    @abstractmethod
    def dependencies(self, model: str) -> Dependencies:
        """What the outputs depend on.

        Args:
            model: the digest of the model.
        """

    @property
    def key(self) -> tuple[Path, str]:
        """What tells it from the others of a command."""
        return self.path, self.name

    @property
    def parts(self) -> Path:
        """Where finished parts are kept."""
        return self.places.parts / self.name

    def count_parts(self, model: Model[Any]) -> int:
        """How many parts there are that several processes may share; 0: one process does it all.

        Raises:
            VoxelryError: the file can't be read.
        """
        return 0

    def make_parts(self, model: Model[Any], numbers: range) -> None:
        """Do some parts and keep them.

        Raises:
            VoxelryError: as `make`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no parts")


@dataclass(frozen=True, slots=True)
class PredictionJob(Job):
    """A file to predict.

    Attributes:
        options: of the task, and for the images' reader.
        format: suffix of what is written.
    """

    options: Mapping[str, Any]
    format: str

    def make(self, model: Model[Any], folder: Path, progress: Callable[[int, int], None] | None) -> Path:
        """See `Recipe.predict_file`."""
        answer: Path = model.recipe.predict_file(
            model, self.path, folder, format=self.format, options=self.options, parts=self.parts, progress=progress
        )
        return answer

    def dependencies(self, model: str) -> Dependencies:
        """All files that are read, and what was asked for."""
        return dependencies(
            self.path,
            model,
            files=(self.path, *self.others, *_paths(self.options)),
            settings={"format": self.format, **dict(sorted(self.options.items()))},
        )

    def count_parts(self, model: Model[Any]) -> int:
        """See `Recipe.parts_of_file`."""
        return int(model.recipe.parts_of_file(model, self.path, options=self.options))

    def make_parts(self, model: Model[Any], numbers: range) -> None:
        """See `Recipe.predict_parts`."""
        model.recipe.predict_parts(model, self.path, self.parts, numbers, options=self.options)


def run_job(model: Model[Any], job: Job, progress: Callable[[int, int], None] | None = None) -> Made:
    """Do a job; what a user can cause is an answer, too.

    Args:
        progress: see `Job.make`.
    """
    started = time.monotonic()
    folder, error, main = job.places.staging / job.name, "", ""
    outputs: dict[str, str] = {}
    try:
        folder = _attempt(job)
        with staged(folder, job.places.out):
            main = job.make(model, folder, progress).name
        outputs = {entry.name: content_hash(entry) for entry in visible(folder)}
    except VoxelryError as fault:
        error = str(fault).replace(str(folder), str(job.places.out))
    except Exception as fault:
        if not is_shortage(fault):
            raise
        error = f"{job.path}: needs more memory than there is"
    return Made(str(folder), main, outputs, time.monotonic() - started, error)


def run_parts(model: Model[Any], job: Job, numbers: range) -> None:
    """Do some parts of a job; what a user can cause is told when the job itself is done.

    Raises:
        Exception: anything else.
    """
    try:
        job.make_parts(model, numbers)
    except VoxelryError:
        return
    except Exception as fault:
        if not is_shortage(fault):
            raise


def _attempt(job: Job) -> Path:
    """A folder of this attempt's own: an earlier one's process has ended, or can't be heard of any more.

    Raises:
        FileError: too many have ended.
    """
    for number in range(_ATTEMPTS):
        folder = job.places.staging / job.name / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise FileError(job.places.out, f"the folder can't be written: {error.strerror or error}") from error
        return folder
    raise FileError(job.path, f"{_ATTEMPTS} processes ended while they worked on it, perhaps for memory")


def dependencies(path: Path, model: str, *, files: Iterable[Path], settings: Mapping[str, Any]) -> Dependencies:
    """What the outputs of a file depend on.

    Args:
        path: the file.
        model: the digest of the model.
        files: all that are read.
        settings: what was asked for.
    """
    try:
        found = json.dumps([stamps(split_dataset(file)[0]) for file in files])
    except FileError:  # it is told when the file is read
        found = ""
    asked = {name: _plain(value) for name, value in settings.items()}
    return Dependencies(
        input=str(path.absolute()),
        files=found,
        model=model,
        settings=json.dumps({**asked, "voxelry": voxelry.__version__}),
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

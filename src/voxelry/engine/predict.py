"""Predictions for files: any reader's format in, the task's files out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model
from voxelry.core.errors import DataError, FileError, SettingError, VoxelryError
from voxelry.core.remote import beside
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.nnunet import files_of_cases
from voxelry.engine.file_job import FileJob, dependencies, run_job
from voxelry.engine.ledger import Ledger, Made
from voxelry.engine.outcome import FileRow, Outcome
from voxelry.io import is_image, open_image
from voxelry.io.images.image import split_dataset
from voxelry.tasks.options import named_files

__all__ = ["Pool", "gather_inputs", "predict_files"]

log = logging.getLogger("voxelry")


def gather_inputs(inputs: Sequence[Path], options: Mapping[str, Any] | None = None) -> list[Path]:
    """Images among files, folders (one level, or their `volumes/`) and `.txt` lists of paths.

    Args:
        options: of the prediction; some name images in place of an input.

    Raises:
        DataError: nothing to predict.
        FileError: an input does not exist.
        SettingError: an option names images beside the inputs.
    """
    named = named_files(options or {})
    if inputs and named:
        raise SettingError(f"{next(iter(named))}: expected no input beside it")
    given = [*inputs, *(path for paths in named.values() for path in paths)]
    if not given:
        raise DataError("inputs: expected at least one image or folder")
    found = list(dict.fromkeys(path for one in given for path in _expand(one)))
    if not found:
        raise DataError(f"{', '.join(map(str, given))}: no images there")
    return found


def _expand(path: Path) -> Iterator[Path]:
    if not split_dataset(path)[0].exists():
        raise FileError(path, "no such file or folder")
    if path.suffix == ".txt":
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield beside(path, line.strip())
    elif path.is_dir() and not is_image(path):
        folder = path / "volumes" if (path / "volumes").is_dir() else path
        yield from (entry for entry in sorted(folder.iterdir()) if is_image(entry))
    else:
        yield path


Parts = Callable[[Path, int, int], None]
"""Is told of a file how many of its parts are done, and how many there are."""

Pool = Callable[[Model[Any], Iterator[FileJob], Parts | None], Iterator[tuple[FileJob, Made]]]
"""Does jobs for a model, each as soon as it is drawn, and answers them in whatever order."""


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
        command = _Command(ledger, model.digest(), progress)
        jobs = [_job(image, others, chosen, options or {}, ledger) for image, others in images]
        command.run(jobs, lambda claimed: (pool or _in_this_process)(model, claimed, tiles))
    return Outcome([command.rows[path] for path, _ in images])


def _job(path: Path, others: Sequence[Path], format: str, options: Mapping[str, Any], ledger: Ledger) -> FileJob:
    name = case_name(path)
    return FileJob(
        path=path,
        others=tuple(others),
        name=name,
        options={**options, "channel_files": [file.name for file in others]} if others else options,
        format=format,
        out=ledger.folder,
        staging=ledger.staging / name,
        parts=ledger.parts(name),
    )


def _in_this_process(model: Model[Any], jobs: Iterator[FileJob], tiles: Parts | None) -> Iterator[tuple[FileJob, Made]]:
    """This process, one job after the other."""
    for job in jobs:
        yield job, run_job(model, job, None if tiles is None else partial(tiles, job.path))


class _Command:
    """Takes jobs that aren't done, has them done, and keeps the ledger.

    Args:
        ledger: of the outputs.
        model: the digest of the model.
        progress: called with each file that is over.

    Attributes:
        rows: what became of each file.
    """

    def __init__(self, ledger: Ledger, model: str, progress: Callable[[Path], None] | None):
        self.ledger, self.model, self.progress = ledger, model, progress
        self.rows: dict[Path, FileRow] = {}
        self._notes: dict[Path, str] = {}
        self._inputs: dict[str, Path] = {}
        self._sources: set[Path] = set()
        self._busy: dict[str, list[FileJob]] = {}

    def run(self, jobs: Sequence[FileJob], pool: Callable[[Iterator[FileJob]], Iterator[tuple[FileJob, Made]]]) -> None:
        """Do what isn't done; what another command is at is waited for, and done here if that one dies."""
        self._sources = {split_dataset(path)[0].resolve() for job in jobs for path in (job.path, *job.others)}
        jobs = [job for job in jobs if self._has_own_name(job)]
        while jobs:
            for job, made in pool(self._claimed(jobs)):
                self._settle(job, made)
            jobs = [job for jobs in self._busy.values() for job in jobs]
            if jobs:
                log.warning("waiting for another voxelry predict, which is at %d of these files", len(jobs))
            for owner in self._busy:
                self.ledger.wait(owner)
            self._busy = {}

    def _has_own_name(self, job: FileJob) -> bool:
        first = self._inputs.setdefault(self.ledger.key(job.name), job.path)
        if first == job.path:
            return True
        self._over(job, FileRow(job.path, "failed", note=f"{job.path}: its output would overwrite that of {first}"))
        return False

    def _claimed(self, jobs: Sequence[FileJob]) -> Iterator[FileJob]:
        for job in jobs:
            try:
                claim = self.ledger.claim(job.name, dependencies(job, self.model))
            except DataError as error:
                self._over(job, FileRow(job.path, "failed", note=str(error)))
                continue
            if claim.state == "kept":
                self._over(job, FileRow(job.path, "kept", claim.main, note=claim.note))
            elif claim.state == "busy":
                self._busy.setdefault(claim.owner, []).append(job)
            else:
                self._notes[job.path] = claim.note
                yield job

    def _settle(self, job: FileJob, made: Made) -> None:
        row = FileRow(job.path, "failed", None, made.seconds, made.error)
        if not made.error:
            try:
                self._spare_inputs(made)
                row = FileRow(
                    job.path, "done", self.ledger.publish(job.name, made), made.seconds, self._notes[job.path]
                )
            except VoxelryError as error:
                row = replace(row, note=str(error))
        if row.state == "failed":
            self.ledger.fail(job.name, replace(made, error=row.note))
        self._over(job, row)

    def _spare_inputs(self, made: Made) -> None:
        for name in made.outputs or ():
            if (target := self.ledger.folder / name).resolve() in self._sources:
                raise DataError(f"{target}: an image that is predicted; choose another folder for the outputs")

    def _over(self, job: FileJob, row: FileRow) -> None:
        self.rows[job.path] = row
        if self.progress is not None:
            for file in (job.path, *job.others):
                self.progress(file)


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

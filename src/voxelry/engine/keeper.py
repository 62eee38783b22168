"""Has jobs done that aren't done, by this process or a pool, and keeps the ledger of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model
from voxelry.core.errors import DataError, VoxelryError
from voxelry.engine.jobs import Job, run_job
from voxelry.engine.ledger import Claim, Ledger, Made
from voxelry.engine.outcome import FileRow
from voxelry.io.images.image import split_dataset

__all__ = ["Keeper", "Parts", "Pool"]

log = logging.getLogger("voxelry")

Parts = Callable[[Path, int, int], None]
"""Is told of a file how many of its parts are done, and how many there are."""

Pool = Callable[[Model[Any], Iterator[Job], Parts | None], Iterator[tuple[Job, Made]]]
"""Does jobs for a model, each as soon as it is drawn, and answers them in whatever order."""


def in_this_process(model: Model[Any], jobs: Iterator[Job], tiles: Parts | None) -> Iterator[tuple[Job, Made]]:
    """One job after the other."""
    for job in jobs:
        yield job, run_job(model, job, None if tiles is None else partial(tiles, job.path))


class Keeper:
    """Takes jobs that aren't done, has them done, and keeps the ledger.

    Where jobs come faster than one a second, as many share a step of the ledger as come within one: what a kill may
    cost is what was done within it.

    Args:
        ledger: of the outputs.
        model: the digest of the model.
        progress: called with each file that is over.

    Attributes:
        rows: what became of each job, by its `key`.
    """

    def __init__(self, ledger: Ledger, model: str, progress: Callable[[Path], None] | None = None):
        self.ledger, self.model, self.progress = ledger, model, progress
        self.rows: dict[tuple[Path, str], FileRow] = {}
        self._notes: dict[tuple[Path, str], str] = {}
        self._inputs: dict[str, Path] = {}
        self._sources: set[str] = set()
        self._busy: dict[str, list[Job]] = {}
        self._done: dict[tuple[Path, str], tuple[Job, Made]] = {}
        self._pace = _Pace(ledger.together)

    def run(self, jobs: Sequence[Job], model: Model[Any], tiles: Parts | None = None, pool: Pool | None = None) -> None:
        """Do what isn't done; what another command is at is waited for, and done here if that one dies."""
        self._sources = set(_names_in(self.ledger.folder, jobs))
        jobs = [job for job in jobs if self._has_own_name(job)]
        while jobs:
            try:
                for job, made in (pool or in_this_process)(model, self._claimed(jobs), tiles):
                    self._settle(job, made)
            finally:  # also when it is interrupted
                self._write()
            jobs = [job for jobs in self._busy.values() for job in jobs]
            if jobs:
                log.warning("waiting for another command of voxelry, which is at %d of these files", len(jobs))
            for owner in self._busy:
                self.ledger.wait(owner)
            self._busy = {}

    def _has_own_name(self, job: Job) -> bool:
        first = self._inputs.setdefault(self.ledger.key(job.name), job.path)
        if first == job.path:
            return True
        self._over(job, FileRow(job.path, "failed", note=f"{job.path}: its output would overwrite that of {first}"))
        return False

    def _claimed(self, jobs: Sequence[Job]) -> Iterator[Job]:
        left, pace = iter(jobs), _Pace(self.ledger.together)
        while group := list(islice(left, pace.size)):
            claims = self.ledger.claim([(job.name, job.dependencies(self.model)) for job in group])
            for job, claim in zip(group, claims, strict=True):
                if self._is_ours(job, claim):
                    yield job
            pace.over()

    def _is_ours(self, job: Job, claim: Claim | DataError) -> bool:
        if isinstance(claim, DataError):
            self._over(job, FileRow(job.path, "failed", note=str(claim)))
        elif claim.state == "kept":
            self._over(job, FileRow(job.path, "kept", claim.main, note=claim.note))
        elif claim.state == "busy":
            self._busy.setdefault(claim.owner, []).append(job)
        else:
            if claim.note:
                self._notes[job.key] = claim.note
            return True
        return False

    def _settle(self, job: Job, made: Made) -> None:
        if job.key in self.rows or job.key in self._done:  # a pool may tell of one twice, after a loss
            return
        self._done[job.key] = job, made if made.error else self._sparing_inputs(made)
        if len(self._done) >= self._pace.size:
            self._write()
            self._pace.over()

    def _write(self) -> None:
        """Have the ledger say what is done."""
        over, self._done = list(self._done.values()), {}
        answers = self.ledger.settle([(job.name, made) for job, made in over]) if over else []
        for (job, made), answer in zip(over, answers, strict=True):
            note = self._notes.pop(job.key, "")
            row = FileRow(job.path, "failed", None, made.seconds, str(answer))
            if not isinstance(answer, VoxelryError):
                row = FileRow(job.path, "done", answer, made.seconds, note)
            self._over(job, row)

    def _sparing_inputs(self, made: Made) -> Made:
        for name in made.outputs or ():
            if name in self._sources:
                target = self.ledger.folder / name
                return replace(
                    made, error=f"{target}: an image that is predicted; choose another folder for the outputs"
                )
        return made

    def _over(self, job: Job, row: FileRow) -> None:
        self.rows[job.key] = row
        if self.progress is not None:
            for file in (job.path, *job.others):
                self.progress(file)


class _Pace:
    """How many jobs share a step: twice as many where they were over within half a second, half of that after two."""

    def __init__(self, most: int):
        self.size, self.most, self._begun = 1, most, time.monotonic()

    def over(self) -> None:
        """Those of a step are over."""
        now = time.monotonic()
        took, self._begun = now - self._begun, now
        if took < 0.5:
            self.size = min(2 * self.size, self.most)
        elif took > 2:
            self.size = max(1, self.size // 2)


def _names_in(folder: Path, jobs: Sequence[Job]) -> Iterator[str]:
    """Names of the inputs that lie in a folder, wherever links lead to."""
    resolved = cache(lambda folder: folder.resolve())
    home = folder.resolve()
    for job in jobs:
        for path in (job.path, *job.others):
            file = split_dataset(path)[0]
            if file.is_symlink():
                file = file.resolve()
            if resolved(file.parent) == home:
                yield file.name

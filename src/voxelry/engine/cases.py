"""The cases of a dataset measured one by one, in this process or a pool, each kept in a file of its own.

    OUT/measured/NAME.safetensors    rows and predictions of a case, see `core.records`
    OUT/measured/.voxelry/           the ledger, see `engine.ledger`

Figures and pictures are made of what these files hold, whoever wrote them and when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model
from voxelry.bundle.seen import case_digests, image_digest
from voxelry.core.errors import DataError, FileError
from voxelry.core.fetch import fetch, named_as
from voxelry.core.records import read_head, read_record, write_records
from voxelry.data.units import Chosen, Unit
from voxelry.engine.jobs import Job, Places, dependencies
from voxelry.engine.keeper import Keeper, Pool
from voxelry.engine.ledger import Dependencies, Ledger
from voxelry.engine.outcome import FileRow, Outcome
from voxelry.tasks.base import Row
from voxelry.tasks.evaluate import Evaluation, OnDemand, measured

__all__ = ["MEASURED", "CaseJob", "MeasuredCases", "NothingMeasuredError", "measure_cases"]

MEASURED = "measured"  # in the folder of an evaluation
_SUFFIX = ".safetensors"
_ALL = "all"  # the name of a dataset that doesn't say what its cases are
_ESCAPED = str.maketrans({sign: f"%{ord(sign):02X}" for sign in "%/\\:"})


@dataclass(frozen=True, slots=True)
class CaseJob(Job):
    """A case to measure.

    Attributes:
        dataset: that it is of.
        unit: its samples.
        model: the digest of the model.
        beside: of so many first samples of the dataset rows are measured in other ways, too.
    """

    dataset: Any
    unit: Unit
    model: str
    beside: int

    @property
    def mark(self) -> str:
        """A digest of all that its figures depend on, as far as it can be told before they are there."""
        told = asdict(self.dependencies(self.model))
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def file(self) -> str:
        """The name of what is kept."""
        return f"{self.name}{_SUFFIX}"

    def make(self, model: Model[Any], folder: Path, progress: Callable[[int, int], None] | None) -> Path:
        """Measure the samples, and keep rows and, where the task says of what they are made, predictions."""
        mark, recipe = self.mark, model.recipe  # as the files are before they are read
        rows: list[list[Row]] = []
        kept: list[Any] = []
        beside: list[Mapping[str, list[Row]]] = []
        numbers = self.unit.numbers
        for number, (found, predictions, _) in zip(numbers, measured(model.task, self.dataset, numbers), strict=True):
            rows.append(found)
            more = number in self._shown
            beside.append(recipe.measured_beside(model.task, self.dataset, number) if more else {})
            kept.append([recipe.to_store(one) for one in predictions] if recipe.stored else None)
            if progress is not None:
                progress(len(rows), len(numbers))
        head = {"mark": mark, "rows": rows, "beside": beside, "digests": self._digests()}
        path = folder / self.file
        write_records(path, head, kept, recipe.stored)
        return path

    def dependencies(self, model: str) -> Dependencies:
        """The files of the case, and how they are read."""
        settings = {**self.unit.settings, "beside": self._shown}
        return dependencies(self.path, model, files=self.unit.files, settings=settings)

    @property
    def _shown(self) -> list[int]:
        """The samples that are measured in other ways, too."""
        return [number for number in self.unit.numbers if number < self.beside]

    def _digests(self) -> dict[str, str]:
        if hasattr(self.dataset, "units"):
            return {self.unit.name: image_digest(self.unit.image)}
        return case_digests(self.dataset)


class NothingMeasuredError(DataError):
    """No case could be measured; `outcome` is what became of each."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome
        reason = outcome.failed[0][1]
        super().__init__(reason if len(outcome.rows) == 1 else f"all {len(outcome.rows)} cases failed: {reason}")


@dataclass
class MeasuredCases(Evaluation[Any]):
    """An evaluation of the cases that could be measured.

    Attributes:
        outcome: what became of each case.
        digests: name to digest of the image of each, see `bundle.seen`.
    """

    outcome: Outcome = field(default_factory=Outcome)
    digests: Mapping[str, str] = field(default_factory=dict)


def measure_cases(
    model: Model[Any],
    dataset: Any,
    out: Path,
    *,
    root: Path,
    progress: Callable[[int], None] | None = None,
    pool: Pool | None = None,
) -> MeasuredCases:
    """Measure every case that isn't measured yet; one that fails is noted and the rest is done.

    What was measured before of the same files with the same model and options is kept; whatever else lies there of an
    earlier evaluation is removed.

    Args:
        out: the folder of the evaluation.
        root: that of the data.
        progress: called with the number of cases after each.
        pool: who measures, such as `engine.ray_pool.RayPool`; None: this process, one case after the other.

    Returns:
        Rows and predictions in the order of the dataset; a prediction is read from its file when it is looked at.

    Raises:
        NothingMeasuredError: no case could be measured.
        FileError: the folder can't be written, or its ledger is damaged or of another version.
    """
    units = dataset.units() if hasattr(dataset, "units") else [Unit(_ALL, root, (root,), tuple(range(len(dataset))))]
    digest = model.digest()
    told = None if progress is None else lambda path: progress(len(units))
    with Ledger(out / MEASURED, guarded=False) as ledger:
        places = Places.of(ledger)
        jobs = [
            CaseJob(unit.image, (), unit.name.translate(_ESCAPED), places, dataset, unit, digest, model.recipe.beside)
            for unit in units
        ]
        ledger.forget_others(job.name for job in jobs)
        keeper = Keeper(ledger, digest, told)
        keeper.run(jobs, model, None, pool)
    rows = [keeper.rows[job.key] for job in jobs]
    return _gathered(model, jobs, rows)


def _gathered(model: Model[Any], jobs: Sequence[CaseJob], files: Sequence[FileRow]) -> MeasuredCases:
    """What the files of the cases say, in the order of the dataset."""
    outcome = Outcome(list(files))
    over = [job for job, file in zip(jobs, files, strict=True) if file.state != "failed"]
    if not over:
        raise NothingMeasuredError(outcome)
    heads = [_head(job) for job in over]
    at = sorted(
        (number, which, place) for which, job in enumerate(over) for place, number in enumerate(job.unit.numbers)
    )
    rows, answers = [], []
    beside: dict[str, list[Row]] = {}
    for _, which, place in at:
        for name, more in heads[which]["beside"][place].items():
            beside.setdefault(name, []).extend(more)
        found = heads[which]["rows"][place]
        rows += found
        answers += [(over[which], place, nth) for nth in range(len(found))]
    dataset, numbers = over[0].dataset, [number for number, _, _ in at]
    return MeasuredCases(
        rows=rows,
        summary=model.task.summary(rows),
        predictions=OnDemand(len(answers), lambda index: _prediction(model, *answers[index])),
        cases=dataset if len(numbers) == len(dataset) else _part(dataset, numbers),
        beside=beside,
        outcome=outcome,
        digests={name: one for head in heads for name, one in head["digests"].items()},
    )


def _part(dataset: Any, numbers: Sequence[int]) -> Any:
    """Some samples of a dataset, as one."""
    return dataset.part(numbers) if hasattr(dataset, "part") else Chosen(dataset, numbers)


def _head(job: CaseJob) -> dict[str, Any]:
    """What is kept of a case beside its predictions.

    Raises:
        FileError: it is damaged, or of other files, another model or other options than these.
    """
    path = job.places.out / job.file
    copy = fetch(path)
    with named_as(path, copy):
        head = read_head(copy)
    if head.get("mark") != job.mark:
        raise FileError(
            path, "not of these files, this model and these options", "they changed meanwhile; give the command again"
        )
    return head


def _prediction(model: Model[Any], job: CaseJob, place: int, nth: int) -> Any:
    """One prediction, as it is kept or else made again."""
    recipe = model.recipe
    if not recipe.stored:
        return next(measured(model.task, job.dataset, [job.unit.numbers[place]]))[1][nth]
    path = job.places.out / job.file
    copy = fetch(path)
    with named_as(path, copy):
        return recipe.from_store(read_record(copy, place, recipe.stored)[nth])

"""Predictions and metrics of a task over a dataset."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

import torch

from voxelry.bundle.registry import recipe_of
from voxelry.core.atomic import replacing
from voxelry.data.loader import Loading, evaluation_loader
from voxelry.data.parts import SampleSource
from voxelry.metrics.choice import ALL
from voxelry.tasks.base import Row, Task

__all__ = ["CASES", "SUMMARY", "Evaluation", "OnDemand", "evaluate_task", "measured", "write_summary"]


CASES, SUMMARY = "cases.csv", "summary.json"

PredictionT = TypeVar("PredictionT")
ItemT = TypeVar("ItemT")


class OnDemand(Sequence[ItemT]):
    """Items each of which is made whenever it is looked at, so that no more are in memory than are in use.

    Args:
        count: how many there are.
        make: answers one by its number.
    """

    def __init__(self, count: int, make: Callable[[int], ItemT]):
        self._numbers, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ItemT: ...

    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...

    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        found = self._numbers[index]
        return [self._make(number) for number in found] if isinstance(found, range) else self._make(found)


@dataclass
class Evaluation(Generic[PredictionT]):
    """What a task said of a dataset and how good it was.

    Attributes:
        rows: one per case, `name` first.
        summary: all cases in a few numbers.
        predictions: the task's own records, in the order of the dataset.
        cases: the dataset.
        beside: rows of some of the cases measured in other ways, for the report, see `Recipe.measured_beside`; None
            where they weren't asked for.
    """

    rows: list[Row] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    predictions: Sequence[PredictionT] = field(default_factory=list)
    cases: Any = ()
    beside: Mapping[str, list[Row]] | None = None

    def chosen(self, task: Task[Any, Any]) -> Self:
        """The same with those metrics alone in the summary that the task is to tell."""
        return replace(self, summary=task.chosen.when_done().of(self.summary))

    def write(self, folder: Path) -> None:
        """Write `cases.csv` and `summary.json`.

        Raises:
            FileError: the folder can't be written.
        """
        action = "the metrics can't be written"
        with replacing(folder / CASES, action) as place, place.open("w", newline="", encoding="utf-8") as file:
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        with replacing(folder / SUMMARY, action) as place:
            write_summary(place, self.summary)


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write numbers as JSON, which has no NaN: those are null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in summary.items()
    }
    path.write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")


def evaluate_task(
    task: Task[Any, PredictionT], dataset: SampleSource, *, progress: Callable[[Sequence[str]], None] | None = None
) -> Evaluation[PredictionT]:
    """Predict and measure every case of a dataset, one at a time, on the device the task is on; see `measured`."""
    rows: list[Row] = []
    predictions: list[PredictionT] = []
    for found, answers, names in measured(task, dataset, range(len(dataset))):
        rows += found
        predictions += answers
        if progress is not None:
            progress(names)
    return Evaluation(rows, task.summary(rows), predictions, dataset)


def measured(
    task: Task[Any, PredictionT], dataset: SampleSource, numbers: Iterable[int]
) -> Iterator[tuple[list[Row], list[PredictionT], Sequence[str]]]:
    """Rows, predictions and names of some samples of a dataset, one after the other.

    What is measured, and on which grid, is the recipe's `compared`. A sample's row depends on nothing but the task and
    the sample, whichever others are measured with it.
    """
    task.eval()
    device = next(task.parameters()).device
    recipe = recipe_of(task)
    numbers = list(numbers)
    loader = evaluation_loader(dataset, Loading(num_workers=0), numbers) if numbers else ()
    for index, loaded in zip(numbers, loader, strict=True):
        batch = loaded.to(device)
        with torch.inference_mode():
            predictions = task.predict_to_measure(batch, ALL)
        predictions, batch = recipe.compared(predictions, batch, dataset, index)
        yield task.metrics(predictions, batch, ALL), predictions, batch.names

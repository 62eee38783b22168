"""Predictions and metrics of a task over a dataset."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from voxelry.bundle.registry import recipe_of
from voxelry.core.atomic import replacing
from voxelry.data.loader import Loading, evaluation_loader
from voxelry.data.parts import SampleSource
from voxelry.metrics.choice import ALL
from voxelry.tasks.base import Row, Task

__all__ = ["Evaluation", "evaluate_task", "write_summary"]


PredictionT = TypeVar("PredictionT")


@dataclass
class Evaluation(Generic[PredictionT]):
    """What a task said of a dataset and how good it was.

    Attributes:
        rows: one per case, `name` first.
        summary: all cases in a few numbers.
        predictions: the task's own records, in the order of the dataset.
        cases: the dataset.
    """

    rows: list[Row] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    predictions: list[PredictionT] = field(default_factory=list)
    cases: Any = ()

    def chosen(self, task: Task[Any, Any]) -> Self:
        """The same with those metrics alone in the summary that the task is to tell."""
        return replace(self, summary=task.chosen.when_done().of(self.summary))

    def write(self, folder: Path) -> None:
        """Write `cases.csv` and `summary.json`.

        Raises:
            FileError: the folder can't be written.
        """
        action = "the metrics can't be written"
        with replacing(folder / "cases.csv", action) as place, place.open("w", newline="", encoding="utf-8") as file:
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        with replacing(folder / "summary.json", action) as place:
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
    """Predict and measure every case of a dataset, one at a time, on the device the task is on.

    What is measured, and on which grid, is the recipe's `compared`.
    """
    task.eval()
    device = next(task.parameters()).device
    evaluation: Evaluation[PredictionT] = Evaluation(cases=dataset)
    recipe = recipe_of(task)
    for index, loaded in enumerate(evaluation_loader(dataset, Loading(num_workers=0))):
        batch = loaded.to(device)
        with torch.inference_mode():
            predictions = task.predict_to_measure(batch, ALL)
        predictions, batch = recipe.compared(predictions, batch, dataset, index)
        evaluation.rows += task.metrics(predictions, batch, ALL)
        evaluation.predictions += predictions
        if progress is not None:
            progress(batch.names)
    evaluation.summary = task.summary(evaluation.rows)
    return evaluation

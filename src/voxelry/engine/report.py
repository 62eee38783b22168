"""The page that a training, an evaluation or the demo leaves behind."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.bundle.model import Model
from voxelry.bundle.registry import recipe_of
from voxelry.bundle.seen import SEEN_WORDS, describe_seen, seen_as, seen_cases
from voxelry.core.errors import FileError
from voxelry.core.fetch import remove
from voxelry.core.remote import Remote, as_path
from voxelry.data.parts import Splits
from voxelry.engine.cases import MeasuredCases, measure_cases
from voxelry.engine.keeper import Pool
from voxelry.engine.plan_file import Decision
from voxelry.engine.report_plan import add_plan
from voxelry.models.transfer import TransferReport
from voxelry.tasks.base import Row, Task
from voxelry.tasks.evaluate import CASES, SUMMARY, Evaluation
from voxelry.tasks.recipe import History
from voxelry.viz import figures
from voxelry.viz.report import Report

__all__ = ["PAGE", "add_results", "add_training", "evaluate_folder", "evaluation_dataset", "write_report"]

log = logging.getLogger("voxelry")

PAGE = "report.html"
LOGS = Path("logs", "metrics.csv")  # in a run's folder


def write_report(
    output: Path,
    task: Task,
    evaluation: Evaluation,
    *,
    splits: Splits,
    history: History,
    transfer: TransferReport | None,
    times: Sequence[Mapping[str, str]],
    plan: Sequence[Decision] = (),
) -> Path:
    """The report of a training, `report.html` in its folder.

    Args:
        output: the run's folder, with the CSV logger's file for the training curve.
        task: the trained task.
        evaluation: of the held-out cases.
        splits: the data.
        history: of the validations.
        transfer: what was taken over from pretrained weights.
        times: rows of where the run's time went, see `TimeShares`.
        plan: that the training followed.
    """
    part, held_out = splits.held_out
    report = Report(f"Training of {type(task).__name__}", subtitle=f"{len(held_out)} {part} cases were held out")
    if plan:
        add_plan(report, plan, splits)
    add_results(report, task, evaluation, history)
    add_curves(report, task, history, output / LOGS)
    if transfer is not None:
        report.section("Pretrained weights", str(transfer))
    report.section("Time", "Where the time of this session of the run went.").table(times)
    return report.save(output / PAGE)


def add_results(report: Report, task: Task, evaluation: Evaluation, history: History = ()) -> None:
    """What the task itself has to show."""
    if not evaluation.rows:
        report.section("Results", "No cases were held out, so nothing was measured.")
    else:
        recipe_of(task).add_results(report, task, evaluation, history)


def add_curves(report: Report, task: Task, history: History, logs: Path) -> None:
    """Training loss and the monitored metric against the optimizer step."""
    report.section("Training")
    steps, losses = _logged(logs, "train/loss")
    if len(steps):
        report.figure(
            figures.curves({"training loss": (steps, losses)}, xlabel="optimizer step", ylabel="loss"),
            "Loss of the logged training batches",
        )
    points = [(entry["step"], entry[task.monitor]) for entry in history if math.isfinite(entry[task.monitor])]
    if points:
        x, y = np.array(points).T
        report.figure(
            figures.curves({task.monitor: (x, y)}, xlabel="optimizer step", ylabel=task.monitor),
            f"{task.monitor} on the validation cases",
        )


def _logged(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    if not path.exists():
        return np.empty(0), np.empty(0)
    with path.open(newline="", encoding="utf-8") as file:
        pairs = [(float(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
    array = np.array(pairs).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def evaluate_folder(
    model: Model,
    root: Path,
    out: Path,
    *,
    layout: str = "auto",
    cases: Path | None = None,
    progress: Callable[[int], None] | None = None,
    pool: Pool | None = None,
    **reading: Any,
) -> MeasuredCases:
    """Measure a model on the cases of a folder, and write `report.html`, `cases.csv` and `summary.json`.

    What each case gives is kept in `measured/` beside them, so that the same call does only what is missing, see
    `engine.cases`. A case that can't be measured doesn't keep the others: the figures are of those, `cases_failed` in
    the summary is how many are not among them, and `outcome` says why.

    Args:
        layout: of the folder, see `data.layouts.find`.
        cases: a split file; only its test cases (or all it names) are measured.
        progress: called with the number of cases after each.
        pool: who measures, see `measure_cases`.
        reading: `options` and `point_options`, for the readers of images and of points, see `find_cases`.

    Returns:
        What was measured. Where the model, or what it was begun with, was trained or validated on some of the cases,
        the rows say so in a column `seen`, and the summary has the figures of the others, too, their names beginning
        with `unseen.`.

    Raises:
        VoxelryError: whatever is wrong with the data or the folder for the results, or with every case.
    """
    dataset = evaluation_dataset(model, root, layout, cases, **reading)
    for name in (CASES, SUMMARY, PAGE):  # of earlier figures none shall be taken for these
        _remove(out / name)
    evaluation = measure_cases(model, dataset, out, root=root, progress=progress, pool=pool)
    seen = seen_cases(model.bundle.config, evaluation.digests)
    evaluation = _told_apart(model.task, evaluation, seen) if seen else evaluation.chosen(model.task)
    failed = evaluation.outcome.failed
    if failed:
        evaluation = replace(evaluation, summary=evaluation.summary | {"cases_failed": float(len(failed))})
    report = Report(f"Evaluation of {model.task_name}", subtitle=f"{len(evaluation.cases)} cases of {root}")
    evaluation.write(out)
    lines = describe_seen(seen)
    for line in lines:
        log.warning("%s", line)
    if lines:
        report.section("Cases that the model was made with", "; ".join(lines))
    if failed:
        report.section("Cases that failed", "The figures are of the others alone.")
        report.table([{"file": str(path), "why": reason} for path, reason in failed])
    add_results(report, model.task, evaluation)
    report.save(out / PAGE)
    return evaluation


def _remove(path: Path) -> None:
    """Delete a file where it is there.

    Raises:
        FileError: it can't be deleted.
    """
    if isinstance(path, Remote):
        remove(path)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(path, f"can't be replaced: {error.strerror or error}") from error


def _told_apart(task: Task, evaluation: MeasuredCases, seen: Mapping[str, str]) -> MeasuredCases:
    """An evaluation that says of each case whether the model has seen it, and sums up the others apart."""
    how = [seen_as(str(row.get("name", "")), seen) for row in evaluation.rows]
    fresh = [row for row, word in zip(evaluation.rows, how, strict=True) if word not in SEEN_WORDS]
    others = Evaluation[Any](fresh, task.summary(fresh) if fresh else {}).chosen(task)
    rows: list[Row] = [
        {"name": row.get("name", ""), "seen": word, **row} for row, word in zip(evaluation.rows, how, strict=True)
    ]
    unseen = {f"unseen.{name}": value for name, value in others.summary.items()}
    return replace(evaluation, rows=rows, summary=evaluation.chosen(task).summary | unseen)


def evaluation_dataset(
    model: Model, root: Path, layout: str = "auto", cases: Path | None = None, **reading: Any
) -> Any:
    """The cases of a folder, prepared as the model wants them.

    Raises:
        DataError: no case, or points that are not the model's.
    """
    recipe = recipe_of(model.task)
    return recipe.cases(model, as_path(root), layout, cases, **reading)


def add_training(report: Report, run: Path, heading: str) -> None:
    """The loss of a run's logged batches."""
    steps, losses = _logged(run / LOGS, "train/loss")
    report.section(f"{heading}: loss")
    report.figure(
        figures.curves({"training loss": (steps, losses)}, xlabel="optimizer step", ylabel="loss"),
        f"{len(steps)} logged batches",
    )

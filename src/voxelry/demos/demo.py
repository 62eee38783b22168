"""The main jobs on built-in phantoms, from data to a report; every step is the command that a user would run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from voxelry.bundle.model import Model, load
from voxelry.bundle.registry import TASKS, recipe_named
from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.demos.steps import clear, make_phantoms, predict, run_training
from voxelry.engine.report import add_results, add_training, evaluation_dataset
from voxelry.tasks.demo import UNSEEN, Demo, DemoTraining
from voxelry.tasks.evaluate import evaluate_task
from voxelry.viz.report import Report

__all__ = ["run_demo"]

ASKED_IMAGES = 2  # predicted one by one, where each prediction is asked for something
SEEDS = 1000  # case k of a folder has seed + k, so seeds far apart share no phantom


def run_demo(
    out: Path, *, task: str = "landmarks", ndim: int = 3, size: int | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Run a demo in `out`, which is emptied first if an earlier demo made it.

    Args:
        out: folder for data, models, predictions and the report.
        task: one that has a demo, see `tasks.recipe.Recipe.demo`.
        ndim: rank of the phantoms.
        size: voxels along the phantoms' axes; None: the demo's own.
        overrides: of all trainings, after the demo's own.

    Returns:
        The report.

    Raises:
        FileError: `out` holds something else, or can't be written.
        SettingError: there is no demo of that task, or of that rank.
    """
    check_choice("task", task, [name for name in TASKS if recipe_named(name).demo is not None])
    demo: Demo = recipe_named(task).demo
    if ndim not in demo.ranks:
        raise SettingError(f"ndim: the demo of {task} has rank {' or '.join(map(str, demo.ranks))}, got {ndim}")
    started = time.monotonic()
    clear(out)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    rank = demo.ranks[ndim]
    for number, (folder, count) in enumerate(demo.phantoms.items()):
        shape = (size or demo.size,) * ndim
        make_phantoms(out / folder, count, seed=number * SEEDS, shape=shape, format=rank.format, kind=demo.kind)
    for training in demo.trainings:
        run_training([*_places(out, training, ndim), *training.overrides, *rank.overrides, *overrides])
    model = _predict(out, demo)
    report = _page(out, demo, model)
    seconds = time.monotonic() - started
    print(f"took {seconds:.0f} s")
    report.section("Time", f"All of this took {seconds:.0f} seconds.")
    return report.save(out / "report.html")


def _places(out: Path, training: DemoTraining, ndim: int) -> list[str]:
    return [
        f"experiment={training.experiment}_{ndim}d",
        f"data.root={out / training.data}",
        f"output_dir={out / training.folder}",
        *([f"pretrained={out / training.pretrained}"] if training.pretrained else []),
        f"trainer.max_minutes={training.minutes}",
    ]


def _predict(out: Path, demo: Demo) -> Model:
    """Predict the phantoms that are new; answers the model of the last training."""
    run, target = out / demo.trainings[-1].folder, out / "predictions"
    model = load(run / "bundle")
    if demo.asks is None:
        predict(model, run, out / UNSEEN, target)
    else:
        for image in sorted((out / UNSEEN / "volumes").iterdir())[:ASKED_IMAGES]:
            predict(model, run, image, target, demo.asks(out / UNSEEN / "labels" / image.name))
    print(f"$ voxelry evaluate --model {run} {out / UNSEEN} --out {out / 'evaluation'}")
    return model


def _page(out: Path, demo: Demo, model: Model) -> Report:
    """The model on phantoms that are new, the models it began with, and what the trainings' losses were."""
    report = Report(demo.title, subtitle=demo.subtitle)
    *earlier, last = demo.trainings
    models = [model, *(load(out / training.folder / "bundle") for training in earlier)]
    for training, one in zip((last, *earlier), models, strict=True):
        dataset = evaluation_dataset(one, out / UNSEEN)
        evaluation = evaluate_task(one.task, dataset).chosen(one.task)
        if one is model:
            evaluation.write(out / "evaluation")
        add_results(report, one.task, evaluation)
        add_training(report, out / training.folder, training.heading)
    return report

"""The commands as functions: `voxelry.train`, `predict` and `evaluate` do what the command line does.

run = voxelry.train("experiment=landmarks_3d", {"data.root": folder, "trainer.max_steps": 5000})
voxelry.predict(run.bundle, "scans", "points", format="mrk.json")
print(voxelry.evaluate(run.bundle, "held_out", "evaluation").summary)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model, load
from voxelry.engine import train as training
from voxelry.engine.compose import compose_training, typed
from voxelry.engine.outcome import Outcome
from voxelry.engine.plan.auto import planned
from voxelry.engine.predict import Pool, gather_inputs, predict_files
from voxelry.engine.report import evaluate_folder
from voxelry.engine.unlabelled import pretrained_first
from voxelry.tasks.evaluate import Evaluation

__all__ = ["evaluate", "predict", "train"]

Place = str | PathLike[str]


def train(*settings: str | Mapping[str, Any]) -> training.Run:
    """Train a model, as `voxelry train SETTINGS`.

    Args:
        settings: overrides as they are typed, `"data.root=DIR"`, and mappings from dotted names to plain values,
            `{"data.root": folder}`; of a name that is given twice the last one counts.

    Returns:
        The run, with its bundle and the metrics of the held-out cases; `interrupted` after a Ctrl-C.

    Raises:
        VoxelryError: whatever a user can cause: unknown settings, data that don't fit, a full disk.
    """
    overrides = [one for given in settings for one in ([given] if isinstance(given, str) else typed(given))]
    return training.train(compose_training(pretrained_first(planned(overrides))))


def predict(
    model: Model | Place,
    inputs: Place | Sequence[Place],
    out: Place,
    *,
    format: str | None = None,
    progress: Callable[[Path], None] | None = None,
    tiles: Callable[[Path, int, int], None] | None = None,
    pool: Pool | None = None,
    **options: Any,
) -> Outcome:
    """Predict for images and write the answers in their own world, as `voxelry predict`.

    Args:
        model: a bundle, the folder of a run, or a model from `voxelry.load`, which takes a device, an adapter and
            changes of settings.
        inputs: files, folders, DICOM series, `.txt` lists of them; empty where an option names the images.
        out: folder for the predictions.
        format: suffix of what is written, of those that the task has; by default its first.
        progress: called after every file.
        tiles: called within a file that is predicted tile by tile, with the tiles that are done and all of them.
        pool: who predicts, such as `engine.ray_pool.RayPool`; None: this process.
        options: what the task can be asked for, such as `click` or `samples` (`voxelry predict --help` lists them),
            and what the file's reader is told, such as `dataset`, `channel` or `spacing`; values as `Model.predict`
            takes them.

    Returns:
        The files that were written, now or by an earlier call, and those that failed with the reason; one that fails
        doesn't keep the others.

    Raises:
        VoxelryError: whatever is wrong beforehand: no images, no bundle, an option or format that the task lacks.
    """
    listed = [Path(inputs)] if isinstance(inputs, str | PathLike) else [Path(one) for one in inputs]
    paths = gather_inputs(listed, options)
    model = model if isinstance(model, Model) else load(model)
    asked: dict[str, Any] = {"format": format, "options": options, "progress": progress, "tiles": tiles, "pool": pool}
    return predict_files(model, paths, Path(out), **asked)


def evaluate(
    model: Model | Place,
    data: Place,
    out: Place = "evaluation",
    *,
    layout: str = "auto",
    cases: Place | None = None,
    progress: Callable[[int], None] | None = None,
    options: Mapping[str, Any] | None = None,
    point_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure a model on labelled data, as `voxelry evaluate`.

    Args:
        model: a bundle, the folder of a run, or a model from `voxelry.load`.
        data: a folder of cases.
        out: folder for `report.html`, `cases.csv` and `summary.json`.
        layout: of the data, such as `volumes`; by default it is found.
        cases: a list of names; only these cases are measured.
        progress: called with the number of cases after each.
        options, point_options: what the readers of images and of points are told.

    Returns:
        The summary, a row for each case, and the predictions.

    Raises:
        VoxelryError: whatever is wrong with the model, the data or the folder for the results.
    """
    model = model if isinstance(model, Model) else load(model)
    listed = None if cases is None else Path(cases)
    reading = {"options": options, "point_options": point_options}
    return evaluate_folder(model, Path(data), Path(out), layout=layout, cases=listed, progress=progress, **reading)

"""The commands that use models, as functions: `voxelry.predict` and `evaluate` do what the command line does.

voxelry.predict("runs/landmarks", "scans", "points", format="mrk.json")
print(voxelry.evaluate("runs/landmarks", "held_out", "evaluation").summary)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model, load
from voxelry.core.remote import as_path
from voxelry.engine.cases import MeasuredCases
from voxelry.engine.inputs import gather_inputs
from voxelry.engine.keeper import Pool
from voxelry.engine.outcome import Outcome
from voxelry.engine.predict import predict_files
from voxelry.engine.report import evaluate_folder

__all__ = ["evaluate", "predict"]

Place = str | PathLike[str]


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
        inputs: here or elsewhere (`s3://bucket/scans`): files, folders, DICOM series, `.txt` lists of them; empty where
            an option names the images.
        out: folder for the predictions, here or elsewhere.
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
    listed = [as_path(one) for one in ([inputs] if isinstance(inputs, str | PathLike) else inputs)]
    paths = gather_inputs(listed, options)
    model = model if isinstance(model, Model) else load(model)
    asked: dict[str, Any] = {"format": format, "options": options, "progress": progress, "tiles": tiles, "pool": pool}
    return predict_files(model, paths, as_path(out), **asked)


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
    pool: Pool | None = None,
) -> MeasuredCases:
    """Measure a model on labelled data, as `voxelry evaluate`.

    Args:
        model: a bundle, the folder of a run, or a model from `voxelry.load`.
        data: a folder of cases.
        out: folder for `report.html`, `cases.csv`, `summary.json`, and `measured/`, by which the same call again does
            only what is missing.
        layout: of the data, such as `volumes`; by default it is found.
        cases: a list of names; only these cases are measured.
        progress: called with the number of cases after each.
        options, point_options: what the readers of images and of points are told.
        pool: who measures, such as `engine.ray_pool.RayPool`; None: this process.

    Returns:
        The summary, a row for each case, and the predictions, each read when it is looked at; in `outcome` what became
        of each case. One that fails doesn't keep the others.

    Raises:
        VoxelryError: whatever is wrong with the model, the data as a whole or the folder for the results.
    """
    model = model if isinstance(model, Model) else load(model)
    listed = None if cases is None else as_path(cases)
    reading: dict[str, Any] = {"options": options, "point_options": point_options}
    asked: dict[str, Any] = {"layout": layout, "cases": listed, "progress": progress, "pool": pool}
    return evaluate_folder(model, as_path(data), as_path(out), **asked, **reading)

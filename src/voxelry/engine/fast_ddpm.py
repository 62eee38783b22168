"""What Fast-DDPM's `--sample` does with a run of ours: images of its test folder, and figures of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.bundle.model import load
from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.data.pairs import PairDataset
from voxelry.engine.report import evaluation_dataset
from voxelry.interop.legacy.fast_ddpm_config import data_set
from voxelry.interop.legacy.fast_ddpm_options import Options
from voxelry.metrics.original_images import fast_ddpm_scores
from voxelry.tasks.evaluate import Evaluation, evaluate_task
from voxelry.tasks.translate.predict import write_translation

__all__ = ["sample_run"]

_SUFFIXES = {".png": ".png", ".npy": ".npy"}


def sample_run(path: Path, content: Mapping[str, Any], options: Options, overrides: Sequence[str]) -> Path:
    """Translate the test cases of a file with the model of its run, and measure that.

    Writes into the original's folder for it (`Options.images`): an image for each case on its target's grid,
    `cases.csv` with our measures and the original's, `summary.json`.

    Args:
        path: the file, which names the run where the options don't.
        content: what it holds.
        options: with `sample` or `test`.
        overrides: nothing, or `data.root=FOLDER` for other cases than the file's `sample_dataroot`.

    Returns:
        The folder.

    Raises:
        CheckpointError: no trained run in the folder.
        ConfigError: no folder of cases, or another override.
        SettingError: time steps that the model was not trained at.
    """
    run = options.folder or Path("runs") / path.stem
    if not (run / "bundle").is_dir():
        theirs = sorted(run.glob("ckpt*.pth"))
        way = f"; {theirs[0]} is the original's: train with pretrained={theirs[0]} first" if theirs else ""
        raise CheckpointError(f"{run}: no trained run there; give the command without --sample first{way}")
    root, layout = _cases(path, content, options, overrides)
    sampling = content.get("sampling")
    if isinstance(sampling, Mapping) and sampling.get("ckpt_id"):
        print(f"{path}: sampling.ckpt_id ignored: the best weights of {run} are measured", file=sys.stderr)
    changes = {f"task.{name}": value for name, value in options.sampling.items()}
    model = load(run / "bundle", changes=changes)
    dataset = evaluation_dataset(model, root, layout)
    task: Any = model.task
    task.quick = True  # one image for each case, as there: no spread
    evaluation = evaluate_task(task, dataset)
    _add_theirs(evaluation)
    evaluation.write(options.images)
    for place, prediction in enumerate(evaluation.predictions):
        case = dataset.cases[place]
        suffix = _SUFFIXES.get(case.image.suffix.lower(), ".nii.gz")
        own = PairDataset.read(dataset, case).space
        write_translation(prediction, options.images, suffix=suffix, space=own)
    for name, value in evaluation.summary.items():
        print(f"{name:32} {value:.4g}")
    print(f"images: {options.images}", file=sys.stderr)
    return options.images


def _cases(path: Path, content: Mapping[str, Any], options: Options, overrides: Sequence[str]) -> tuple[Path, str]:
    """The folder of the cases and its layout."""
    strange = [override for override in overrides if not override.startswith("data.root=")]
    if strange:
        raise ConfigError(f"{strange[0]}: with --sample nothing is trained; expected data.root=FOLDER or nothing")
    data = dict(content.get("data") or {})
    if overrides:
        data["sample_dataroot"] = overrides[-1].removeprefix("data.root=")
    if not data.get("sample_dataroot"):
        raise ConfigError(f"{path}: data.sample_dataroot: expected the folder of the cases; or give data.root=FOLDER")
    kind = str((content.get("model") or {}).get("type", "sg"))
    found = data_set(path, data, kind, options)
    return found.roots["sample_dataroot"], found.layout


def _add_theirs(evaluation: Evaluation) -> None:
    """The original's figures beside ours, under names of their own."""
    columns: dict[str, list[float]] = {}
    for row, prediction in zip(evaluation.rows, evaluation.predictions, strict=True):
        scores = fast_ddpm_scores(prediction.translated.numpy(), prediction.target.numpy())
        row |= scores
        for name, value in scores.items():
            columns.setdefault(name, []).append(value)
    evaluation.summary |= {name: float(np.mean(values)) for name, values in columns.items()}

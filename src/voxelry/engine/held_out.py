"""A trained model on the held-out cases of a run's configuration, without any training."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from voxelry.bundle.model import load
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import CheckpointError, DataError
from voxelry.core.settings import keywords
from voxelry.data.parts import SampleSource, Splits
from voxelry.data.prepare.source import check_template
from voxelry.engine.data import build_data
from voxelry.engine.logs import EvaluationLines
from voxelry.engine.report import add_results
from voxelry.engine.train import build_task
from voxelry.tasks.base import Task
from voxelry.tasks.evaluate import evaluate_task
from voxelry.tasks.recipe import Recipe
from voxelry.viz.report import Report

__all__ = ["measure_held_out"]

_PUBLISHED = (".pt", ".pth", ".safetensors")


def measure_held_out(config: DictConfig, part: str, model: Path | None = None) -> Path:
    """Measure a model on one part of the split that a training by `config` would have.

    Args:
        config: as for `engine.train.train`; its `output_dir` gets a folder `inference_PART`.
        part: `validation` or `test`.
        model: a bundle, a run's folder or another project's weights; by default the run in `output_dir`.

    Returns:
        The report; `cases.csv` and `summary.json` lie beside it.

    Raises:
        CheckpointError: no model there, or one that doesn't fit.
        DataError: no cases in that part.
    """
    output = Path(config.output_dir)
    source = output if model is None else model
    recipe = recipe_of_config(config)
    task, splits = (
        _published(config, recipe, source) if source.suffix in _PUBLISHED else _bundle(config, recipe, source)
    )
    held_out: SampleSource = getattr(splits, part)
    if not len(held_out):
        raise DataError(f"{config.data.root}: no {part} cases in the split, so there is nothing to measure")
    evaluation = evaluate_task(task, held_out, progress=EvaluationLines(part, len(held_out)))
    folder = output / f"inference_{part}"
    evaluation.write(folder)
    report = Report(f"Evaluation of {recipe.name}", subtitle=f"{len(held_out)} {part} cases of {config.data.root}")
    add_results(report, task, evaluation)
    return report.save(folder / "report.html")


def _bundle(config: DictConfig, recipe: Recipe, source: Path) -> tuple[Task, Splits]:
    folder = source / "bundle" if (source / "bundle").is_dir() else source
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{source}: no trained model there; train it first (training_protocol.apply: true), or name a bundle or "
            "checkpoint with --load_path=PATH"
        )
    loaded = load(folder)
    if loaded.recipe.name != recipe.name:
        raise CheckpointError(f"{folder}: a model for {loaded.recipe.name}; expected one for {recipe.name}")
    check_template(config.data.root, loaded.bundle.template)
    data = keywords(config.data) | {"preprocess": loaded.bundle.preprocess.settings()}
    splits = build_data(OmegaConf.create(data), ndim=config.ndim, recipe=recipe, seed=config.seed)
    recipe.check(loaded.task, splits.train)
    return loaded.task, splits


def _published(config: DictConfig, recipe: Recipe, source: Path) -> tuple[Task, Splits]:
    splits = build_data(config.data, ndim=config.ndim, recipe=recipe, seed=config.seed)
    started = OmegaConf.create({**keywords(config), "pretrained": str(source)})
    task, report = build_task(started, recipe, splits)
    if report is None or report.new:
        unknown = next(iter(report.new)) if report is not None else "all"
        raise CheckpointError(f"{source}: no trained model for {recipe.name}; its weights lack {unknown}")
    return task.eval(), splits

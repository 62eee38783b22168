"""Learning again from corrected cases: the settings of a training that begins with a model, and whether it helped."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voxelry.bundle.model import Model
from voxelry.bundle.seen import SEEN_WORDS, case_digests, seen_cases
from voxelry.core.errors import SettingError, VoxelryError
from voxelry.data.layouts.find import find_cases
from voxelry.engine.compose import compose_training
from voxelry.models.networks import image_rank
from voxelry.tasks.evaluate import evaluate_task

__all__ = ["HeldOut", "labelled", "parts_of", "training_settings", "verdict"]

FEWEST = 2  # cases to learn from
EVERY = 5  # one of so many corrected cases is held out
MOST_MEASURED = 20  # cases that two models are compared on

HeldOut = dict[Path, list[str]]
"""Names of cases with labels, by the folder that they are in."""


def labelled(model: Model[Any], folders: Sequence[Path], kept: Sequence[str]) -> HeldOut:
    """Cases in these folders that have what the task learns from and were neither corrected nor learned from before."""
    required, found, left = model.recipe.required, HeldOut(), MOST_MEASURED
    for folder in folders:
        try:
            names = [case.name for case in find_cases(folder) if getattr(case, required) and case.name not in kept]
            if names:
                seen = seen_cases(model.bundle.config, case_digests(_dataset(model, folder, names)))
                names = [name for name in names if seen.get(name) not in SEEN_WORDS][:left]
        except VoxelryError:  # a folder in no layout, or without labels
            names = []
        if names:
            found[folder] = names
            left -= len(names)
    return found


def parts_of(names: Sequence[str], *, hold_out: bool) -> dict[str, list[str]]:
    """Corrected cases for training, validation and, where nothing else is there to measure on, for the comparison.

    Raises:
        SettingError: too few.
    """
    ordered, fewest = sorted(names), FEWEST + hold_out
    if len(ordered) < fewest:
        raise SettingError(f"train: expected at least {fewest} kept cases, got {len(ordered)}")
    test = ordered[::EVERY] if hold_out else []
    validation = ordered[EVERY // 2 :: EVERY] if len(ordered) >= EVERY else []
    train = [name for name in ordered if name not in {*test, *validation}]
    return {"train": train, "validation": validation, "test": test}


def training_settings(model: Model[Any], data: Path, parts: dict[str, list[str]], out: Path, minutes: float) -> Path:
    """Write the settings of a training that goes on from a model, as it was trained itself where that is known.

    Args:
        model: with a bundle on disk.
        data: the folder of corrected cases.
        parts: names of its cases.
        out: folder of the run, which is made.

    Returns:
        The file.

    Raises:
        SettingError: there is no experiment for the model.
    """
    out.mkdir(parents=True)
    split = out / "split.csv"
    split.write_text("".join(f"{name},{part}\n" for part, names in parts.items() for name in names), encoding="utf-8")
    name = f"{model.task_name}_{image_rank(model.task.network)}d"
    given: dict[str, Any] = {"data.root": str(data), "trainer.max_minutes": minutes}
    config: DictConfig = compose_training([f"experiment={name}", given])
    OmegaConf.set_struct(config, False)
    recorded = model.bundle.config.get("training") or {}
    if (recorded.get("data") or {}).get("source") == config.data.source:
        for section in ("task", "model", "backbone", "augment", "optimizer", "learning_rate", "data", "seed"):
            if section in recorded:
                config[section] = recorded[section]
    own = model.bundle.config["task"]
    for key, value in config.task.items():
        if value == "auto" and key in own:  # what its own training settled
            config.task[key] = own[key]
    # files of the folder say all of themselves
    config.data.update(root=str(data), layout="volumes", options={}, point_options={}, unlabelled=None, num_workers=0)
    config.data.update(
        split={**config.data.split, "file": str(split), "folds": None, "fractions": None}, training_samples="all"
    )
    config.data.update({key: None for key in ("_target_", "suffix") if key in config.data})
    config.update(pretrained=str(model.bundle.path), output_dir=str(out), plan=None, resume=False)
    config.trainer.progress = False
    OmegaConf.save(config, out / "settings.yaml")
    return out / "settings.yaml"


def measured(model: Model[Any], held_out: HeldOut) -> float:
    """The metric that decides between models of the task, over all these cases."""
    rows = [
        row
        for folder, names in held_out.items()
        for row in evaluate_task(model.task, _dataset(model, folder, names)).rows
    ]
    return float(model.task.summary(rows)[model.task.monitor])


def verdict(before: Model[Any], after: Model[Any], held_out: HeldOut) -> dict[str, Any]:
    """Whether a model is better than the one that it began with, and by how much, for the page."""
    task = before.task
    values = measured(before, held_out), measured(after, held_out)
    gain = (values[1] - values[0]) * (1 if task.higher_is_better else -1)
    return {
        "metric": task.monitor,
        "before": _number(values[0]),
        "after": _number(values[1]),
        "cases": sum(map(len, held_out.values())),
        "better": gain > 0 or (math.isnan(values[0]) and math.isfinite(values[1])),
    }


def _dataset(model: Model[Any], folder: Path, names: Sequence[str]) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "names.txt"
        listed.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return model.recipe.cases(model, folder, "auto", listed)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

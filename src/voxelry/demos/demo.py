"""The main jobs on built-in phantoms, from data to a report; every step is the command that a user would run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxelry.bundle.model import load
from voxelry.core.choice import check_choice
from voxelry.demos.reconstruct import reconstruct_demo
from voxelry.demos.segment import segment_demo
from voxelry.demos.steps import clear, make_phantoms, predict_folder, run_training
from voxelry.demos.translate import translate_demo
from voxelry.engine.report import add_training, demo_page, evaluation_dataset
from voxelry.tasks.evaluate import evaluate_task
from voxelry.tasks.pretrain.recipe import add_new_images
from voxelry.viz.report import Report

__all__ = ["DEMOS", "run_demo"]

UNLABELLED, LABELLED, UNSEEN = 24, 12, 6


def run_demo(out: Path, *, task: str = "landmarks", ndim: int = 3, **settings: Any) -> Path:
    """Run a demo in `out`, which is emptied first if an earlier demo made it.

    Args:
        out: folder for data, models, predictions and the report.
        task: one of `DEMOS`.
        ndim: rank of the phantoms.
        settings: of that demo, such as `minutes` and `size`.

    Returns:
        The report.

    Raises:
        FileError: `out` holds something else, or can't be written.
        SettingError: there is no demo of that task.
    """
    check_choice("task", task, DEMOS)
    started = time.monotonic()
    clear(out)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    report = DEMOS[task](out, ndim=ndim, **settings)
    seconds = time.monotonic() - started
    print(f"took {seconds:.0f} s")
    report.section("Time", f"All of this took {seconds:.0f} seconds.")
    return report.save(out / "report.html")


def landmarks_demo(out: Path, *, ndim: int = 3, minutes: tuple[float, float] = (0.9, 1.4), size: int = 48) -> Report:
    """Pretrain, fine-tune on few labels, predict unseen phantoms.

    Args:
        minutes: wall-clock limits of pretraining and fine-tuning.
        size: voxels along the phantoms' axes.
    """
    shape = (size,) * ndim
    suffix = ".nii.gz" if ndim == 3 else ".png"
    # case k of a folder has seed + k, so seeds far apart share no phantom
    data = {"unlabelled": (UNLABELLED, 0), "labelled": (LABELLED, 1000), "unseen": (UNSEEN, 2000)}
    for name, (count, seed) in data.items():
        make_phantoms(out / name, count, seed=seed, shape=shape, format=suffix, kind="torso")

    common = [f"data.preprocess.image_size={size if ndim == 2 else 32}", "model=folded_unet", "trainer.log_every=5"]
    pretrain = [
        f"experiment=pretrain_{ndim}d",
        f"data.root={out}/unlabelled",
        f"output_dir={out}/pretrain",
        f"trainer.max_minutes={minutes[0]}",
        "trainer.max_steps=1500",
        "trainer.validate_every=250",
        "task.schedule=cosine",  # ends in pure noise however few its steps
        "task.n_timestep=200",
        "task.objective=v",  # samples of a network that has hardly begun to learn are smooth, not saturated
        "task.sample_steps=20",
        *common,
    ]
    run_training(pretrain)
    landmarks = [
        f"experiment=landmarks_{ndim}d",
        f"data.root={out}/labelled",
        "data.split.fractions=[0.67,0.33,0.0]",
        f"output_dir={out}/landmarks",
        f"pretrained={out}/pretrain",
        f"trainer.max_minutes={minutes[1]}",
        "trainer.max_steps=1500",
        "trainer.validate_every=150",
        *common,
    ]
    run_training(landmarks)

    model = predict_folder(out / "landmarks", out / "unseen", out / "predictions")
    print(f"$ voxelry evaluate --model {out}/landmarks {out}/unseen --out {out}/evaluation")
    report = Report("voxelry demo", subtitle="Phantoms, pretraining, fine-tuning on few labels, unseen phantoms")
    demo_page(report, out, model, evaluation_dataset(model, out / "unseen"), {"Fine-tuning": out / "landmarks"})
    pretrained = load(out / "pretrain" / "bundle")
    held_out = evaluation_dataset(pretrained, out / "unseen")
    add_new_images(report, pretrained.task, evaluate_task(pretrained.task, held_out))
    add_training(report, out / "pretrain", "Pretraining")
    return report


DEMOS: dict[str, Callable[..., Report]] = {
    "landmarks": landmarks_demo,
    "segment": segment_demo,
    "reconstruct": reconstruct_demo,
    "translate": translate_demo,
}

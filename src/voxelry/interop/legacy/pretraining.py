"""The originals' diffusion pretraining as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.interop.legacy.data import (
    add_augmentation,
    add_data,
    add_network,
    add_optimizer,
    add_rest,
    completed,
    data_name,
    rank,
    size_name,
)
from voxelry.interop.legacy.overrides import Translation, count, number, read, truth

__all__ = ["pretraining"]

_USUAL: dict[str, dict[str, Any]] = {
    "model": {
        "lr": 1e-4,
        "optimizer": "adamw",
        "loss_type": "l2",
        "iterations": 30000,
        "freq_metrics": 2000,
        "freq_checkpoint": 2000,
    },
    "dataset": {"batch_size": 4, "grad_accumulation": 8},
}
_STEPS = (  # of the schedule: key, its usual value, how it is read
    ("schedule", "linear", str.lower),
    ("n_timestep", 500, count),
    ("linear_start", 1e-4, number),
    ("linear_end", 0.02, number),
)


def pretraining(path: Path, content: Mapping[str, Any]) -> Translation:
    """One run of `task=pretrain`: steps, constant learning rate, the training part of the landmark task's split.

    Raises:
        ConfigError: the file asks for something voxelry doesn't have.
    """
    result = Translation(source=str(path))
    content, notes = completed(path, content, _USUAL)
    result.notes += notes
    model, dataset, ndim = dict(content["model"]), dict(content["dataset"]), rank(path, content)
    result.set("experiment", f"pretrain_{ndim}d", "is_3d")
    add_augmentation(result, ndim)
    unet = dict(model.pop("unet", {}))
    add_network(result, content, unet)
    conditioned = result.flag(unet, "model.unet", "self_condition", usual=True)
    why = "the estimate is really fed back; the original fed zeros"
    result.set("model.self_condition", conditioned, "model.unet.self_condition", why if conditioned else "")
    result.leftovers(unet, "model.unet")
    _schedule(result, dict(model.pop("beta_schedule", {})))
    result.take(
        model,
        "model",
        {
            "loss_type": ("task.loss_type", str.lower),
            "iterations": ("trainer.max_steps", count),
            "freq_metrics": ("trainer.validate_every", count),
            "freq_checkpoint": ("trainer.checkpoint_every", count),
            "continue_training": ("resume", truth),
        },
    )
    kept = result.read("model.freq_checkpoint", content["model"]["freq_checkpoint"], count)
    result.set("trainer.keep_every", kept, "model.freq_checkpoint", "a numbered checkpoint each time, as the original")
    averaged = result.flag(model, "model", "use_ema", usual=True)
    result.set("trainer.ema", 0.995 if averaged else None, "model.use_ema")
    add_optimizer(result, path, model)
    result.leftovers(model, "model")
    result.set("learning_rate", "constant")
    result.set("trainer.close_epochs", True)
    result.set("trainer.limit_val_batches", None)  # the original measures all of them
    result.set("trainer.gradient_clip_val", 1.0)
    result.set("trainer.gradient_clip_algorithm", "value")
    result.notes.append(
        "training: constant learning rate, every gradient clipped to 1, a step at the end of every epoch; validation "
        "at the end of the epoch that is nearest to freq_metrics"
    )
    add_data(result, path, content, dataset)
    result.notes.append("sees no validation or test case of the landmark task (the 2-D original did see the former)")
    result.differs(
        "images are diffused in [-1, 1], not [0, 1] (task.diffusion_range=[0,1]); step 0 is trained as well; the best "
        "weights on the validation cases are kept, not the last; FID is not measured"
    )
    result.set("output_dir", _folder(path, content))
    add_rest(result, path, content)
    return result


def _schedule(result: Translation, schedules: dict[str, Any]) -> None:
    trained = dict(schedules.pop("train", {}))
    for key, usual, convert in _STEPS:
        origin = f"model.beta_schedule.train.{key}"
        result.set(f"task.{key}", result.read(origin, trained.pop(key, usual), convert), origin)
    result.leftovers(trained, "model.beta_schedule.train")
    if "test" in schedules:
        schedules.pop("test")
        result.ignore("model.beta_schedule.test", "sampling uses the schedule that was trained")
    result.leftovers(schedules, "model.beta_schedule")


def _folder(path: Path, content: Mapping[str, Any]) -> str:
    """The original's folder for a run: data, schedule and steps, size and channels."""
    schedule = content["model"].get("beta_schedule", {}).get("train", {})
    name, steps = (
        read(path, f"model.beta_schedule.train.{key}", schedule.get(key, usual), convert)
        for key, usual, convert in _STEPS[:2]
    )
    return (
        f"{content['experiment_path']}/{data_name(path, content)}/{name}_{steps}/"
        f"size{size_name(path, content)}_ch{content['dataset']['image_channels']}"
    )

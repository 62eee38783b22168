"""The originals' diffusion pretraining as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.interop.overrides import Translation, truth, whole
from voxelry.interop.seed_data import (
    add_augmentation,
    add_data,
    add_network,
    add_optimizer,
    add_rest,
    data_name,
    rank,
    size_name,
)

__all__ = ["pretraining"]


def pretraining(path: Path, content: Mapping[str, Any]) -> Translation:
    """One run of `task=pretrain`: steps, constant learning rate, the training part of the landmark task's split.

    Raises:
        ConfigError: the file asks for something voxelry doesn't have.
    """
    result = Translation(source=str(path))
    model, dataset = dict(content["model"]), dict(content["dataset"])
    result.set("experiment", f"pretrain_{rank(content)}d", "is_3d")
    add_augmentation(result, content)
    unet = dict(model.pop("unet", {}))
    add_network(result, content, unet)
    conditioned = truth(unet.pop("self_condition", True))
    why = "the estimate is really fed back; the original fed zeros"
    result.set("model.self_condition", conditioned, "model.unet.self_condition", why if conditioned else "")
    result.leftovers(unet, "model.unet")
    _schedule(result, dict(model.pop("beta_schedule", {})))
    result.take(
        model,
        "model",
        {
            "loss_type": ("task.loss_type", str.lower),
            "iterations": ("trainer.max_steps", whole),
            "freq_metrics": ("trainer.validate_every", whole),
            "freq_checkpoint": ("trainer.checkpoint_every", whole),
            "continue_training": ("resume", truth),
        },
    )
    averaged = truth(model.pop("use_ema", True))
    result.set("trainer.ema", 0.995 if averaged else None, "model.use_ema")
    add_optimizer(result, path, model)
    result.leftovers(model, "model")
    result.set("learning_rate", "constant")
    result.set("trainer.close_epochs", True)
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
    for key in ("schedule", "n_timestep", "linear_start", "linear_end"):
        if key in trained:
            result.set(f"task.{key}", trained.pop(key), f"model.beta_schedule.train.{key}")
    result.leftovers(trained, "model.beta_schedule.train")
    if "test" in schedules:
        schedules.pop("test")
        result.ignore("model.beta_schedule.test", "sampling uses the schedule that was trained")
    result.leftovers(schedules, "model.beta_schedule")


def _folder(path: Path, content: Mapping[str, Any]) -> str:
    """The original's folder for a run: data, schedule and steps, size and channels."""
    schedule = content["model"].get("beta_schedule", {}).get("train", {})
    return (
        f"{content.get('experiment_path', 'runs')}/{data_name(path, content)}/"
        f"{schedule.get('schedule', 'linear')}_{schedule.get('n_timestep', 500)}/"
        f"size{size_name(content)}_ch{content['dataset'].get('image_channels', 1)}"
    )

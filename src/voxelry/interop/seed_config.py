"""The configuration files of the original projects, as overrides of ours.

Several of their keys do not mean what they are called (`attn_res` is the width of an attention head,
`num_head_channels` the number of heads, `res_blocks` the number of normalisation groups, and the image
size sets the width of the network). Each is translated by what it did, and every translation, change
and omission is noted for the user to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import ConfigError
from voxelry.interop import fast_ddpm_config
from voxelry.interop.overrides import Translation, read_settings, truth

__all__ = ["Translation", "translate"]

_LAYOUTS = {
    "volume3d": "volumes",
    "chest": "chest",
    "hand": "hand",
    "cephalo": "cephalometric",
    "cephalometric": "cephalometric",
}
_SCHEDULERS = {"reducelronplateau": "plateau", "cosineannealinglr": "cosine"}


def translate(path: Path) -> list[Translation]:
    """Translate a configuration file; a downstream file may ask for two runs, from scratch and fine-tuned.

    Raises:
        FileError: missing, or not JSON or YAML.
        ConfigError: the file lacks what both originals need, or asks for something voxelry doesn't have.
    """
    content = read_settings(path)
    if fast_ddpm_config.is_theirs(content):
        return [fast_ddpm_config.translate(path, content)]
    model, dataset = _mapping(path, content, "model"), _mapping(path, content, "dataset")
    if "unet" in model or "beta_schedule" in model:
        return [_pretraining(path, content, model, dataset)]
    if "name" in model:
        return _downstream(path, content, model, dataset)
    raise ConfigError(f"{path}: model: expected unet and beta_schedule (pretraining) or name (landmarks)")


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: expected an object, got {value!r}")
    return dict(value)


def _pretraining(path: Path, content: dict[str, Any], model: dict[str, Any], dataset: dict[str, Any]) -> Translation:
    result = Translation()
    ndim = _rank(result, content)
    result.set("experiment", f"pretrain_{ndim}d", "is_3d")
    result.set("augment", "light" if ndim == 2 else "none", why="as the original")
    size = dataset.get("image_size", 256)
    _width(result, size)
    unet = dict(model.pop("unet", {}))
    for key, ours, why in (
        ("channel_mults", "model.multipliers", ""),
        ("attn_res", "model.head_dim", "it was the width of an attention head"),
        ("num_head_channels", "model.heads", "it was the number of heads"),
        ("res_blocks", "model.groups", "it was the number of normalisation groups"),
        ("self_condition", "model.self_condition", "the estimate is really fed back; the original fed zeros"),
    ):
        if key in unet:
            value = unet.pop(key)
            result.set(ours, truth(value) if key == "self_condition" else value, f"model.unet.{key}", why)
    result.leftovers(unet, "model.unet")
    schedules = dict(model.pop("beta_schedule", {}))
    train_schedule = dict(schedules.pop("train", {}))
    for key in ("schedule", "n_timestep", "linear_start", "linear_end"):
        if key in train_schedule:
            result.set(f"task.{key}", train_schedule.pop(key), f"model.beta_schedule.train.{key}")
    result.leftovers(train_schedule, "model.beta_schedule.train")
    if "test" in schedules:
        result.ignore("model.beta_schedule.test", "sampling uses the schedule that was trained")
    result.take(
        model,
        "model",
        {
            "loss_type": ("task.loss_type", str.lower),
            "iterations": ("trainer.max_steps", int),
            "freq_metrics": ("trainer.validate_every", int),
            "freq_checkpoint": ("trainer.checkpoint_every", int),
            "continue_training": ("resume", truth),
        },
    )
    if "use_ema" in model:
        ema = 0.995 if truth(model.pop("use_ema")) else None
        result.set("trainer.ema", ema, "model.use_ema")
    _optimizer(path, result, model)
    result.leftovers(model, "model")
    _dataset(path, result, content, dataset)
    steps = train_schedule_name(content)
    result.set("output_dir", f"{content.get('experiment_path', 'runs')}/{dataset.get('name', 'data')}/{steps}")
    _rest(result, content)
    return result


def train_schedule_name(content: Mapping[str, Any]) -> str:
    """The original's folder for a run: schedule, steps, size and channels."""
    schedule = content["model"].get("beta_schedule", {}).get("train", {})
    size = content["dataset"].get("image_size", 256)
    text = "x".join(map(str, size)) if isinstance(size, list) else str(size)
    return (
        f"{schedule.get('schedule', 'linear')}_{schedule.get('n_timestep', 500)}/"
        f"size{text}_ch{content['dataset'].get('image_channels', 1)}"
    )


def _downstream(
    path: Path, content: dict[str, Any], model: dict[str, Any], dataset: dict[str, Any]
) -> list[Translation]:
    if model.get("name") != "ddpm":
        raise ConfigError(
            f"{path}: model.name: expected ddpm, got {model.get('name')!r}; there are no ResNet baselines here"
        )
    protocol = content.get("training_protocol", {})
    finetuning, scratch = protocol.get("finetuning", {}), protocol.get("scratch", {})
    runs = []
    if truth(finetuning.get("apply", False)):
        runs.append(("finetuning", finetuning))
    if truth(scratch.get("apply", False)) or not runs:
        runs.append(("scratch", scratch))
    return [_landmarks(path, content, dict(model), dict(dataset), kind, dict(options)) for kind, options in runs]


def _landmarks(
    path: Path,
    content: dict[str, Any],
    model: dict[str, Any],
    dataset: dict[str, Any],
    kind: str,
    options: dict[str, Any],
) -> Translation:
    result = Translation()
    ndim = _rank(result, content)
    result.set("experiment", f"landmarks_{ndim}d", "is_3d")
    model.pop("name")
    options.pop("apply", None)
    if kind == "finetuning":
        if not options.get("path"):
            raise ConfigError(f"{path}: training_protocol.finetuning.path: expected the pretrained weights")
        result.set("pretrained", options.pop("path"), "training_protocol.finetuning.path", "architecture read from it")
    else:
        result.notes.append("training from scratch; give pretrained=PATH for fine-tuning")
        _width(result, dataset.get("image_size", 256))
    if "resume" in options:
        result.set("resume", truth(options.pop("resume")), f"training_protocol.{kind}.resume")
    result.leftovers(options, f"training_protocol.{kind}")
    if "epochs" in model:
        result.set("trainer.max_epochs", model.pop("epochs"), "model.epochs")
    loss = model.pop("loss", model.pop("loss_function", None))
    if loss is not None:
        why = "softmax over the voxels of each landmark" if "entropy" in str(loss).lower() else ""
        result.set("task.loss", loss, "model.loss", why)
    scheduler = model.pop("scheduler", model.pop("lr_scheduler", None))
    if scheduler is not None:
        name = _SCHEDULERS.get(str(scheduler).lower())
        if name is None:
            raise ConfigError(f"{path}: model.scheduler: expected one of {', '.join(_SCHEDULERS)}, got {scheduler!r}")
        result.set("learning_rate", name, "model.scheduler")
    if kind == "scratch" and "lr" in model:
        model["lr"] = float(model["lr"]) * 10
        result.notes.append("model.lr times 10, as the original did from scratch")
    _optimizer(path, result, model)
    result.leftovers(model, "model")
    if "sigma" in dataset:
        result.set("task.sigma", dataset.pop("sigma"), "dataset.sigma")
        result.set("task.sigma_unit", "voxel", "dataset.sigma", "it was in voxels of the resized image")
    if "training_samples" in dataset:
        result.set(
            "data.training_samples", dataset.pop("training_samples"), "dataset.training_samples", "drawn by seed"
        )
    _dataset(path, result, content, dataset)
    if "inference_protocol" in content:
        result.ignore("inference_protocol", "every run ends with an evaluation on the held-out cases")
    result.set(
        "output_dir", f"{content.get('experiment_path', 'runs')}/{content['dataset'].get('name', 'data')}/{kind}"
    )
    _rest(result, content)
    return result


def _rank(result: Translation, content: Mapping[str, Any]) -> int:
    return 3 if truth(content.get("is_3d", False)) else 2


def _width(result: Translation, size: Any) -> None:
    result.set("model", "unet_seed")
    width = int(size[0] if isinstance(size, list) else size)
    result.set("model.width", width, "dataset.image_size", "the original's width was the image size")


def _dataset(path: Path, result: Translation, content: Mapping[str, Any], dataset: dict[str, Any]) -> None:
    name = str(dataset.pop("name", "volume3d"))
    result.set("data.layout", _LAYOUTS.get(name.lower(), "auto"), "dataset.name")
    result.set("data.root", str(_root(path, Path(dataset.pop("path", "datasets/")), name)), "dataset.path")
    result.take(
        dataset,
        "dataset",
        {
            "image_size": ("data.preprocess.image_size", lambda value: value),
            "batch_size": ("data.batch_size", int),
            "grad_accumulation": ("trainer.grad_accumulation", int),
            "pin_memory": ("data.pin_memory", truth),
        },
    )
    workers = dataset.pop("num_workers", None)
    if workers is not None:
        result.set("data.num_workers", int(workers), "dataset.num_workers")
    if "image_channels" in dataset:
        result.ignore(f"dataset.image_channels={dataset.pop('image_channels')}", "read from the files")
    result.leftovers(dataset, "dataset")


def _root(path: Path, folder: Path, name: str) -> Path:
    """Where the data are: the named folder, the folder itself, or its only subfolder with volumes in it."""
    if (folder / name).is_dir():
        return folder / name
    if (folder / "volumes").is_dir() or not folder.is_dir():
        return folder
    inside = [entry for entry in sorted(folder.iterdir()) if (entry / "volumes").is_dir()]
    if len(inside) > 1:
        names = ", ".join(entry.name for entry in inside)
        raise ConfigError(f"{path}: dataset.path: {folder} holds several datasets ({names}); name one of them")
    return inside[0] if inside else folder


def _optimizer(path: Path, result: Translation, model: dict[str, Any]) -> None:
    if "optimizer" in model:
        result.optimizer(path, model.pop("optimizer"), "model.optimizer")
    if "lr" in model:
        result.set("optimizer.lr", float(model.pop("lr")), "model.lr")


def _rest(result: Translation, content: Mapping[str, Any]) -> None:
    if "gpu" in content:
        result.ignore(f"gpu={content['gpu']}", "a GPU is used when there is one; trainer.devices=[0] chooses")
    known = {
        "is_3d",
        "model",
        "dataset",
        "gpu",
        "experiment_path",
        "training_protocol",
        "inference_protocol",
    }
    for key in content:
        if key not in known:
            result.ignore(key, "no such setting")

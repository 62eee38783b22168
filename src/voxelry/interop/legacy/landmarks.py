"""The originals' few-shot landmark studies as runs of ours: their protocol, not their architecture alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelry.core.errors import ConfigError
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
from voxelry.interop.legacy.options import OriginalOptions
from voxelry.interop.legacy.overrides import Translation, count, number, read, text, truth

__all__ = ["landmark_runs"]

_USUAL: dict[str, dict[str, Any]] = {
    "model": {"lr": 1e-5, "optimizer": "AdamW", "epochs": 200},
    "dataset": {"batch_size": 2, "grad_accumulation": 8, "sigma": 5},
}
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
_PARTS = 6  # of a path in a folder's name
_SCHEDULERS = ("reducelronplateau", "cosineannealinglr")
_FROM_SCRATCH, _FINE_TUNED = "scratch", "finetuning"
_KNOWN = {
    "training_protocol": ("apply", _FROM_SCRATCH, _FINE_TUNED),
    "inference_protocol": ("apply", "use_validation_set_for_inference"),
}


@dataclass(frozen=True)
class _Run:
    """What a file says of one of its runs: from scratch or fine-tuned, and its weights to start from."""

    kind: str
    settings: Mapping[str, Any]
    weights: str = ""


def landmark_runs(path: Path, content: Mapping[str, Any], options: OriginalOptions) -> list[Translation]:
    """The trainings and measurements that a downstream file asks for.

    Raises:
        ConfigError: the file asks for something voxelry doesn't have, or for nothing at all.
    """
    name = content["model"].get("name", "ddpm")
    if str(name).lower() != "ddpm":
        raise ConfigError(f"{path}: model.name: expected ddpm, got {name!r}; there are no ResNet baselines here")
    protocol = content.get("training_protocol", {})
    inference = content.get("inference_protocol", {})
    content, notes = completed(path, content, _USUAL)
    trained = read(path, "training_protocol.apply", protocol.get("apply", True), truth) and options.load_path is None
    measured = read(path, "inference_protocol.apply", inference.get("apply", True), truth)
    on = "use_validation_set_for_inference"
    part = "validation" if read(path, f"inference_protocol.{on}", inference.get(on, False), truth) else "test"
    if not trained and not measured:
        raise ConfigError(
            f"{path}: training_protocol.apply and inference_protocol.apply: both are false, so there is nothing to do"
        )
    runs = []
    for run in _runs(path, protocol, options, trained):
        if trained:
            runs.append(_training(path, content, run, measured))
            runs[-1].notes[:0] = notes
        if not trained or (measured and part == "validation"):
            runs.append(_measurement(path, content, run, part))
    return runs


def _runs(path: Path, protocol: Mapping[str, Any], options: OriginalOptions, trained: bool) -> list[_Run]:
    """From scratch, fine-tuned, or both; what the command line says of pretrained weights decides."""
    scratch, finetuning = dict(protocol.get(_FROM_SCRATCH, {})), dict(protocol.get(_FINE_TUNED, {}))
    wants_scratch, wants_tuned = (
        read(path, f"training_protocol.{kind}.apply", settings.pop("apply", False), truth)
        for kind, settings in ((_FROM_SCRATCH, scratch), (_FINE_TUNED, finetuning))
    )
    weights = finetuning.pop("path", "") or ""
    if weights:
        read(path, "training_protocol.finetuning.path", weights, text)
    if options.pretrained is not None:
        wants_scratch, wants_tuned = not options.pretrained, bool(options.pretrained)
        weights = options.pretrained
    if not (wants_scratch or wants_tuned):
        if trained and any("apply" in protocol.get(kind, {}) for kind in (_FROM_SCRATCH, _FINE_TUNED)):
            raise ConfigError(f"{path}: training_protocol: expected apply: true in scratch or in finetuning")
        wants_scratch, wants_tuned = trained or not weights, bool(weights) and not trained
    runs = []
    if wants_tuned:
        if not weights:
            raise ConfigError(
                f"{path}: training_protocol.finetuning.path: expected the pretrained weights; give them there, or as "
                "pretrained=PATH on the command line"
            )
        runs.append(_Run(_FINE_TUNED, finetuning, weights))
    if wants_scratch:
        runs.append(_Run(_FROM_SCRATCH, scratch))
    return runs


def _measurement(path: Path, content: Mapping[str, Any], run: _Run, part: str) -> Translation:
    """The run of `_training` without its training."""
    result = _training(path, content, run, measured=True)
    samples = str(_samples(path, content["dataset"].get("training_samples", "all")))
    folder = _folder(path, content, run).replace("${data.training_samples}", samples)
    result.notes = [f"inference only, on the {part} cases; results go below {folder}"]
    result.measure = part
    return result


def _training(path: Path, content: Mapping[str, Any], run: _Run, measured: bool) -> Translation:
    result = Translation(source=str(path))
    model, dataset, ndim = dict(content["model"]), dict(content["dataset"]), rank(path, content)
    result.set("experiment", f"landmarks_{ndim}d", "is_3d")
    add_augmentation(result, ndim, scaled=str(dataset["name"]).lower() != "chest")
    model.pop("name", None)
    if "encoder" in model:
        model.pop("encoder")
        result.ignore("model.encoder", "it was of the ResNet baselines")
    unet = dict(model.pop("unet", {}))
    settings = dict(run.settings)
    if run.weights:
        result.set("pretrained", run.weights, "training_protocol.finetuning.path", "architecture read from it")
        for key in unet:
            result.ignore(f"model.unet.{key}", "the pretrained network is used as it is")
        if "different_dataset" in settings:
            settings.pop("different_dataset")
            result.ignore("training_protocol.finetuning.different_dataset", "whatever weights fit are taken over")
    else:
        result.notes.append(
            "training from scratch; pretrained=PATH beside --config fine-tunes, with the file's own learning rate and "
            "in a folder of its own"
        )
        add_network(result, content, unet)
        if "self_condition" in unet:
            unet.pop("self_condition")
            result.ignore("model.unet.self_condition", "a map of landmarks is no estimate of the image")
        result.leftovers(unet, "model.unet")
        model["lr"] = result.read("model.lr", model["lr"], number) * 10
        result.notes.append("model.lr times 10, as the original did from scratch")
    if "resume" in settings:
        origin = f"training_protocol.{run.kind}"
        result.set("resume", result.flag(settings, origin, "resume", usual=False), f"{origin}.resume")
    result.leftovers(settings, f"training_protocol.{run.kind}")
    _learning(result, path, model, dataset)
    result.leftovers(model, "model")
    _targets(result, path, dataset)
    add_data(result, path, content, dataset)
    if not measured:
        result.ignore("inference_protocol.apply", "every run ends with an evaluation on the held-out cases")
    for section, known in _KNOWN.items():
        result.leftovers({key: 0 for key in content.get(section, {}) if key not in known}, section)
    result.set("output_dir", _folder(path, content, run))
    add_rest(result, path, content)
    return result


def _learning(result: Translation, path: Path, model: dict[str, Any], dataset: Mapping[str, Any]) -> None:
    """Epochs, validation, schedule and loss."""
    epochs = result.read("model.epochs", model.pop("epochs"), count)
    result.set("trainer.max_epochs", epochs, "model.epochs")
    result.set("trainer.validate_every", "epoch")
    result.set("trainer.checkpoint_every", "epoch")
    result.set("trainer.ema", None)
    result.set("trainer.gradient_clip_val", None)
    result.notes.append(
        "training: every epoch ends with a step and a validation; no averaged weights, no clipping, as the original"
    )
    loss = model.pop("loss_function" if "loss_function" in model else "loss", None)
    if loss is None:
        result.notes.append("model.loss_function not given: CrossEntropyLoss, as in the original's own files")
    else:
        why = "softmax over the voxels of each landmark" if "entropy" in str(loss).lower() else ""
        result.set("task.loss", loss, "model.loss_function", why)
    accumulation = result.read("dataset.grad_accumulation", dataset["grad_accumulation"], count)
    _scheduler(result, path, model, accumulation)
    result.set(
        "trainer.patience", 2 * (accumulation + 5) + 1, "dataset.grad_accumulation", "epochs without an improvement"
    )
    add_optimizer(result, path, model)


def _scheduler(result: Translation, path: Path, model: dict[str, Any], accumulation: int) -> None:
    name = model.pop("scheduler" if "scheduler" in model else "lr_scheduler", "ReduceLROnPlateau")
    if name is None or str(name).lower() in ("none", "null", ""):
        result.set("learning_rate", "constant", "model.scheduler")
        return
    if str(name).lower() not in _SCHEDULERS:
        raise ConfigError(
            f"{path}: model.scheduler: expected ReduceLROnPlateau, CosineAnnealingLR or null, got {name!r}"
        )
    if str(name).lower() == "cosineannealinglr":
        result.set("learning_rate", "cosine", "model.scheduler")
        result.set("learning_rate.warmup", 0.0)
        result.set("learning_rate.final", 0.0)
        return
    result.set("learning_rate", "plateau", "model.scheduler")
    result.set("learning_rate.reduce", 0.5)
    result.set(
        "learning_rate.patience", accumulation + 5, "dataset.grad_accumulation", "plus 5 epochs, as the original"
    )
    result.set("learning_rate.minimum", 0.0)
    result.set("learning_rate.threshold", 1e-4)


def _samples(path: Path, samples: Any) -> int | str:
    """How many cases are learned from: a number, or `all`."""
    if str(samples).lower() == "all":
        return "all"
    if isinstance(samples, list):
        raise ConfigError(
            f"{path}: dataset.training_samples: expected all or one number, got {samples!r}; for a run of each give "
            f"data.training_samples={samples[0] if samples else 5} beside --config, and so on"
        )
    return int(read(path, "dataset.training_samples", samples, count))


def _targets(result: Translation, path: Path, dataset: dict[str, Any]) -> None:
    """The landmarks' heatmaps, and how many cases are learned from."""
    sigma = dataset.pop("sigma")
    widths = [result.read("dataset.sigma", width, number) for width in (sigma if isinstance(sigma, list) else [sigma])]
    result.set("task.sigma", widths if isinstance(sigma, list) else widths[0], "dataset.sigma")
    result.set("task.sigma_unit", "voxel", "dataset.sigma", "it was in voxels of the resized image")
    samples = _samples(path, dataset.pop("training_samples", "all"))
    result.set("data.training_samples", samples, "dataset.training_samples")
    result.set("data.training_choice", "first", "dataset.training_samples", "by name; drawn: by the seed instead")
    result.set("task.original_metrics", True)
    result.differs(
        "targets are Gaussians at the exact points, not discs (task.target=disc); points are read with "
        "task.decoder=local, not centroid; the softmax is over the voxels of each landmark, not across landmarks; the "
        "best epoch is by mre_mm on the validation cases, not by the loss there"
    )


def _folder(path: Path, content: Mapping[str, Any], run: _Run) -> str:
    """The original's folder for a run, which has data, size, channels and samples; then the weights it started from."""
    channels = content["dataset"]["image_channels"]
    start = f"pretrained/{_weights_name(Path(run.weights))}" if run.weights else "random"
    return (
        f"{content['experiment_path']}/{data_name(path, content)}/"
        f"size{size_name(path, content, every_axis=True)}_ch{channels}_samples${{data.training_samples}}/ddpm/{start}"
    )


def _weights_name(weights: Path) -> str:
    """What tells weights from others: their path, without those folders that all runs have.

    Of a long one the last parts, after a digest of it.
    """
    full = weights.with_suffix("") if weights.suffix in _CHECKPOINTS else weights
    near = Path(os.path.relpath(full))
    told = full if near.parts[:1] == ("..",) else near
    parts = [part for part in told.parts if part not in ("/", "bundle", "models")]
    if len(parts) <= _PARTS:
        return "-".join(parts)
    return "-".join([hashlib.sha256(str(told).encode()).hexdigest()[:6], *parts[-_PARTS:]])

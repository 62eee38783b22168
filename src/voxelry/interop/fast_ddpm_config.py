"""The YAML files of Fast-DDPM (Jiang et al. 2025, arXiv:2405.14802), and of a 3-D version with a `depth`, as ours.

What made the original unstable or wrong isn't taken over: the loss is a mean, clipping of gradients is on, and the
sampler visits the steps that were trained. Each difference is noted for the user to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import ConfigError
from voxelry.data.layouts import SPLIT_NAMES
from voxelry.interop.overrides import Translation, truth

__all__ = ["is_theirs", "translate"]

_LAYOUTS = {"BRATS": "ab", "LDFDCT": "ldfdct", "PMUB": "pmub"}
_WINDOWS = {"BRATS": (-1.0, 1.0), "LDFDCT": (0.0, 255.0), "PMUB": (0.0, 255.0)}
_SCHEDULES = {"linear": "linear", "quad": "quadratic", "sigmoid": "sigmoid", "alpha_cosine": "cosine"}
_ROOTS = ("train_dataroot", "val_dataroot", "sample_dataroot")
_STEPS = 10

# the original's own values, for files that leave a part out
_MODEL = {"type": "sg", "ch": 128, "ch_mult": [1, 1, 2, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [16]}

_UNUSED = {
    "data.logit_transform": "images aren't photographs",
    "data.uniform_dequantization": "images aren't 8-bit photographs",
    "data.gaussian_dequantization": "images aren't 8-bit photographs",
    "data.rescaled": "images are always shown to the network in [-1, 1]",
    "data.channels": "read from the files",
    "model.in_channels": "conditions and target are read from the files",
    "model.out_ch": "read from the files",
    "model.var_type": "sampling takes the posterior variance",
}


def is_theirs(content: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of Fast-DDPM's: `data` and a `model` with `ch_mult`."""
    model = content.get("model")
    return "data" in content and isinstance(model, Mapping) and "ch_mult" in model


def translate(path: Path, content: Mapping[str, Any]) -> Translation:
    """One run that trains what the file describes.

    Args:
        path: the file, for messages and the name of the run.
        content: what it holds; parts that are left out have the original's values.

    Raises:
        ConfigError: it asks for something voxelry doesn't have; names the key.
    """
    parts = {name: dict(value) for name, value in content.items() if isinstance(value, Mapping)}
    data, model = parts.pop("data"), {**_MODEL, **parts.pop("model")}
    result = Translation()
    ndim = 3 if "depth" in data else 2
    result.set("experiment", f"translate_{ndim}d", "data.depth" if ndim == 3 else "data.image_size")
    kind = str(model.pop("type"))
    if kind not in ("sg", "sr"):
        raise ConfigError(f"{path}: model.type: expected sg (one condition) or sr (two), got {kind!r}")
    _network(result, model, size=int(data.get("image_size", 256)))
    _diffusion(path, result, parts.pop("diffusion", {}))
    _data(path, result, data, kind, ndim)
    _training(path, result, parts.pop("training", {}), parts.pop("optim", {}), model)
    result.leftovers(model, "model")
    for name in ("sampling", "sampling_fid", "sampling_inter"):
        if name in parts:
            parts.pop(name)
            result.ignore(name, "a trained bundle is used by voxelry predict and voxelry evaluate")
    result.set("output_dir", f"runs/{path.stem}")
    for name in content:
        if name in parts or not isinstance(content[name], Mapping):
            result.ignore(name, "no such setting")
    return result


def _network(result: Translation, model: dict[str, Any], *, size: int) -> None:
    """The network as it is; attention where the image has one of the given widths."""
    result.set("model", "fast_ddpm", "model.type", "the original's network, and dense attention in the middle")
    result.set("model.width", int(model.pop("ch")), "model.ch")
    multipliers = [int(factor) for factor in model.pop("ch_mult")]
    result.set("model.multipliers", multipliers, "model.ch_mult")
    result.set("model.blocks_per_level", int(model.pop("num_res_blocks")), "model.num_res_blocks")
    wanted = model.pop("attn_resolutions")
    kinds = ["full" if size >> level in wanted else "none" for level in range(len(multipliers))]
    result.set("model.attention", kinds, "model.attn_resolutions", f"by level, for images {size} wide")
    if "dropout" in model:
        result.set("model.dropout", float(model.pop("dropout")), "model.dropout")
    if not truth(model.pop("resamp_with_conv", True)):
        result.set("model.down", "average", "model.resamp_with_conv")
        result.set("model.up", "nearest")
    _ignore_unused(result, model, "model")


def _diffusion(path: Path, result: Translation, diffusion: dict[str, Any]) -> None:
    result.set("task.mode", "diffusion")
    result.set("task.objective", "epsilon")
    given = diffusion.pop("beta_schedule", "linear")
    if given not in _SCHEDULES:
        raise ConfigError(f"{path}: diffusion.beta_schedule: expected one of {', '.join(_SCHEDULES)}, got {given!r}")
    result.set("task.schedule", _SCHEDULES[given], "diffusion.beta_schedule")
    result.take(
        diffusion,
        "diffusion",
        {
            "beta_start": ("task.linear_start", float),
            "beta_end": ("task.linear_end", float),
            "num_diffusion_timesteps": ("task.n_timestep", int),
        },
    )
    result.leftovers(diffusion, "diffusion")
    result.set("task.spacing", "fast_ddpm_uniform")
    result.set("task.steps", _STEPS)
    result.notes += [
        f"--timesteps {_STEPS} --scheduler_type uniform assumed, which are 11 steps with 0 and 999; for the other list "
        "task.spacing=fast_ddpm_non_uniform",
        "loss: a mean over the voxels; the original's sum grows with the size of the volume",
        "sampling: estimates are kept in range; task.clip=false leaves them as the original does",
        "task.baseline=true: plain regression is trained beside it, to compare; false halves the work",
    ]


def _data(path: Path, result: Translation, data: dict[str, Any], kind: str, ndim: int) -> None:
    name = str(data.pop("dataset", "BRATS"))
    if name not in _LAYOUTS:
        raise ConfigError(f"{path}: data.dataset: expected one of {', '.join(_LAYOUTS)}, got {name!r}")
    result.set("data", "pairs", "data.dataset")
    result.set("data.layout", _LAYOUTS[name], "data.dataset")
    _roots(result, data)
    low, high = _WINDOWS[name]
    result.set("data.preprocess.normalise", "window")
    result.set("data.preprocess.window", [low, high], "data.dataset", "values beyond it are an error, not clipped")
    result.set("data.preprocess.outside", "error")
    size, depth = int(data.pop("image_size", 256)), data.pop("depth", None)
    shape = [size, size] if depth is None else [int(depth), size, size]
    result.set("data.preprocess.image_size", shape, "data.image_size" if depth is None else "data.depth, image_size")
    if kind == "sr" and ndim == 3:
        result.set("data.pairs.resample", True, "model.type=sr", "thick slices in A are brought onto the grid of B")
    given = "data.random_flip" if "random_flip" in data else ""
    flips = truth(data.pop("random_flip", False))
    result.set("augment", "flips" if flips else "none", given, "along every axis" if flips else "")
    if "num_workers" in data:
        result.set("data.num_workers", int(data.pop("num_workers")), "data.num_workers")
    _ignore_unused(result, data, "data")
    result.leftovers(data, "data")


def _roots(result: Translation, data: dict[str, Any]) -> None:
    """One root: the parent of folders `train`, `val` and `test`, or the training folder alone."""
    roots = {key: Path(str(data.pop(key))) for key in _ROOTS if key in data}
    if "train_dataroot" not in roots:
        result.notes.append("data.train_dataroot is not there; give data.root=FOLDER")
        return
    training = roots.pop("train_dataroot")
    together = all(root.parent == training.parent and root.name in SPLIT_NAMES for root in (training, *roots.values()))
    if roots and together:
        result.set("data.root", str(training.parent), "data.train_dataroot", "its subfolders are the split")
        return
    result.set("data.root", str(training), "data.train_dataroot")
    for key, root in roots.items():
        result.ignore(f"data.{key}", f"cases are held out of the training folder; then voxelry evaluate ... {root}")


def _training(
    path: Path, result: Translation, training: dict[str, Any], optim: dict[str, Any], model: dict[str, Any]
) -> None:
    if "n_epochs" in training and "n_iters" in training:
        training.pop("n_iters")
        result.ignore("training.n_iters", "n_epochs decides, as in the original")
    result.take(
        training,
        "training",
        {
            "batch_size": ("data.batch_size", int),
            "n_epochs": ("trainer.max_epochs", int),
            "n_iters": ("trainer.max_steps", int),
            "snapshot_freq": ("trainer.checkpoint_every", int),
            "validation_freq": ("trainer.validate_every", int),
        },
    )
    result.leftovers(training, "training")
    rate = float(model.pop("ema_rate", 0.999))
    result.set("trainer.ema", rate if truth(model.pop("ema", True)) else None, "model.ema")
    result.optimizer(path, optim.pop("optimizer", "Adam"), "optim.optimizer")
    result.take(optim, "optim", {"lr": ("optimizer.lr", float)})
    result.take(optim, "optim", {"grad_clip": ("trainer.gradient_clip_val", float)})
    # the optimizer's own keywords, of which our configurations leave PyTorch's values
    for key, usual, convert in (("weight_decay", 0.0, float), ("eps", 1e-8, float), ("amsgrad", False, truth)):
        value = convert(optim.pop(key, usual))
        if value != usual:
            result.set(f"++optimizer.{key}", value, f"optim.{key}")
    beta = float(optim.pop("beta1", 0.9))
    if beta != 0.9:
        result.set("++optimizer.betas", [beta, 0.999], "optim.beta1")
    result.leftovers(optim, "optim")


def _ignore_unused(result: Translation, section: dict[str, Any], prefix: str) -> None:
    for key in list(section):
        if f"{prefix}.{key}" in _UNUSED:
            section.pop(key)
            result.ignore(f"{prefix}.{key}", _UNUSED[f"{prefix}.{key}"])

"""The YAML files of Fast-DDPM (Jiang et al. 2025, arXiv:2405.14802), and of a 3-D version with a `depth`, as ours.

What made the original unstable or wrong isn't taken over: the loss is a mean, clipping of gradients is on, and the
sampler visits the steps that were trained. Each difference is noted for the user to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError, VoxelryError
from voxelry.data.layouts.find import find_pairs, recognise
from voxelry.interop.legacy.fast_ddpm_options import Options
from voxelry.interop.legacy.overrides import Translation, count, number, read, truth, whole, wholes
from voxelry.io import open_image

__all__ = ["DataSet", "data_set", "is_theirs", "translate"]

_LAYOUTS = {"BRATS": "ab", "LDFDCT": "ldfdct", "PMUB": "pmub"}
_TWO_CONDITIONS = ("PMUB",)
_BYTES = (0.0, 255.0)
_WINDOWS = {"BRATS": (-1.0, 1.0), "LDFDCT": _BYTES, "PMUB": _BYTES}
_HOUNSFIELD = (-1024.0, 3071.0)  # of CT that isn't stored in bytes: the range of its 12 bits
_SCHEDULES = {
    "linear": "linear",
    "quad": "quadratic",
    "sigmoid": "sigmoid",
    "alpha_cosine": "alpha_cosine",
    "alpha_sigmoid": "alpha_sigmoid",
    "alpha_linear": "alpha_linear",
}
_PARTS = ("data", "model", "diffusion", "training", "optim")
_ROOTS = ("train_dataroot", "val_dataroot", "sample_dataroot")
_NEVER = 10**6  # a validation every so many steps is none

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


def translate(path: Path, content: Mapping[str, Any], options: Options = Options()) -> Translation:  # noqa: B008
    """One run that trains what the file describes.

    Args:
        path: the file, for messages and the name of the run.
        content: what it holds; parts that are left out have the original's values.
        options: of the command line.

    Raises:
        ConfigError: it asks for something voxelry doesn't have; names the key.
    """
    for name in _PARTS:
        if name in content and not isinstance(content[name], Mapping):
            raise ConfigError(f"{path}: {name}: expected keys with values below it, got {content[name]!r}")
    parts = {name: dict(value) for name, value in content.items() if isinstance(value, Mapping)}
    data, model = parts.pop("data"), {**_MODEL, **parts.pop("model")}
    result = Translation(source=str(path))
    if data.get("depth") is None:
        data.pop("depth", None)
    ndim = 3 if "depth" in data else 2
    result.set("experiment", f"translate_{ndim}d", "data.depth" if ndim == 3 else "data.image_size")
    kind = str(model.pop("type"))
    if kind not in ("sg", "sr"):
        raise ConfigError(f"{path}: model.type: expected sg (one condition) or sr (two), got {kind!r}")
    plane = _plane(path, data)
    _network(result, model, size=plane[-1])
    _diffusion(path, result, parts.pop("diffusion", {}))
    options.add_to(result)
    _data(result, data, data_set(path, data, kind, options), kind)
    _training(path, result, parts.pop("training", {}), parts.pop("optim", {}), model)
    result.leftovers(model, "model")
    for name in ("sampling", "sampling_fid", "sampling_inter"):
        if name in parts:
            parts.pop(name)
            result.ignore(name, "a trained bundle is used by voxelry predict and voxelry evaluate")
    result.set("output_dir", str(options.folder or f"runs/{path.stem}"), "--exp, --doc" if options.folder else "")
    for name in content:
        if name in parts or not isinstance(content[name], Mapping):
            result.ignore(name, "no such setting")
    return result


def _plane(path: Path, data: Mapping[str, Any]) -> list[int]:
    """Rows and columns of an image: one number for both, or two."""
    size = data.get("image_size", 256)
    along = size if isinstance(size, list) else [size, size]
    if len(along) != 2:
        raise ConfigError(f"{path}: data.image_size: expected one number or two, got {size!r}")
    return [int(read(path, "data.image_size", each, count)) for each in along]


def _network(result: Translation, model: dict[str, Any], *, size: int) -> None:
    """The network as it is; attention where the image has one of the given widths."""
    result.set("model", "fast_ddpm", "model.type", "the original's network, and dense attention in the middle")
    result.set("model.width", result.read("model.ch", model.pop("ch"), count), "model.ch")
    multipliers = result.read("model.ch_mult", model.pop("ch_mult"), wholes)
    result.set("model.multipliers", multipliers, "model.ch_mult")
    blocks = result.read("model.num_res_blocks", model.pop("num_res_blocks"), count)
    result.set("model.blocks_per_level", blocks, "model.num_res_blocks")
    wanted = model.pop("attn_resolutions") or []
    wanted = [] if not wanted else result.read("model.attn_resolutions", wanted, wholes)
    kinds = ["full" if size >> level in wanted else "none" for level in range(len(multipliers))]
    result.set("model.attention", kinds, "model.attn_resolutions", f"by level, for images {size} wide")
    if "dropout" in model:
        result.set("model.dropout", result.read("model.dropout", model.pop("dropout"), number), "model.dropout")
    if not result.flag(model, "model", "resamp_with_conv", usual=True):
        result.set("model.down", "average", "model.resamp_with_conv")
        result.set("model.up", "nearest")
    _ignore_unused(result, model, "model")


def _diffusion(path: Path, result: Translation, diffusion: dict[str, Any]) -> None:
    result.set("task.mode", "diffusion")
    result.set("task.objective", "epsilon")
    given = diffusion.pop("beta_schedule", "linear")
    check_choice(f"{path}: diffusion.beta_schedule", given, _SCHEDULES, ConfigError)
    result.set("task.schedule", _SCHEDULES[given], "diffusion.beta_schedule")
    result.take(
        diffusion,
        "diffusion",
        {
            "beta_start": ("task.linear_start", number),
            "beta_end": ("task.linear_end", number),
            "num_diffusion_timesteps": ("task.n_timestep", count),
        },
    )
    result.leftovers(diffusion, "diffusion")
    result.notes += [
        "loss: a mean over the voxels; the original's sum grows with the size of the volume",
        "sampling: estimates are kept in range; task.clip=false leaves them as the original does",
        "task.baseline=true: plain regression is trained beside it, to compare; false halves the work",
    ]


@dataclass(frozen=True)
class DataSet:
    """Which of the original's data sets is meant, and where its parts are.

    Attributes:
        name: BRATS, LDFDCT or PMUB.
        layout: how its files lie, one of the layouts of pairs, see `data.layouts`.
        roots: folders by the original's keys, `train_dataroot` and so on.
        window: values that become the network's ends.
    """

    name: str
    layout: str
    roots: dict[str, Path]
    window: tuple[float, float]


def data_set(path: Path, data: Mapping[str, Any], model_type: str, options: Options) -> DataSet:
    """The data set of a file's `data` part.

    The published files all name PMUB, which the original doesn't look at: its `--dataset` decides, and the key has a
    say only where its number of conditions is the network's. Else the training folder shows which one it is.

    Raises:
        ConfigError: an unknown name, one that contradicts the network, or nothing that tells.
    """
    volumes = "depth" in data
    roots = {key: Path(str(data[key])) for key in _ROOTS if data.get(key)}
    looks = next((found for root in roots.values() if (found := _look(root)) is not None), None)
    origin, name = ("--dataset", options.dataset) if options.dataset else ("data.dataset", data.get("dataset"))
    if name is not None:
        check_choice(f"{path}: {origin}", name, _LAYOUTS, ConfigError)
    fits = name is not None and (volumes or (name in _TWO_CONDITIONS) == (model_type == "sr"))
    if options.dataset and not fits:
        raise ConfigError(
            f"{path}: --dataset {name}: has {'two' if model_type == 'sg' else 'one'} conditions, but "
            f"model.type {model_type} has {'one' if model_type == 'sg' else 'two'}"
        )
    if not fits:
        name = _by_layout(path, name, looks, model_type)
    assert name is not None
    layout = looks or ("ab" if volumes else _LAYOUTS[name])
    example = next((file for root in roots.values() if (file := _example(root, layout)) is not None), None)
    return DataSet(name, layout, roots, _window(name, example))


def _by_layout(path: Path, name: Any, looks: str | None, model_type: str) -> str:
    """The data set that the training folder holds, for a file that names none or another."""
    if model_type == "sr":
        return "PMUB"
    known = {layout: known for known, layout in _LAYOUTS.items() if known not in _TWO_CONDITIONS}
    if looks in known:
        return known[looks]
    said = "not there" if name is None else f"{name}, which the published files all say and the original ignores"
    raise ConfigError(f"{path}: data.dataset: {said}; give --dataset BRATS or --dataset LDFDCT")


def _look(root: Path) -> str | None:
    """The layout of a folder that is there."""
    try:
        return recognise(root, pairs=True) if root.is_dir() else None
    except VoxelryError:
        return None


def _example(root: Path, layout: str) -> Path | None:
    """One of a folder's images."""
    try:
        return find_pairs(root, layout)[0].image if root.is_dir() else None
    except VoxelryError:
        return None


def _window(name: str, example: Path | None) -> tuple[float, float]:
    """The values of a data set's files: CT is in bytes, as published, or in Hounsfield units."""
    if name == "LDFDCT" and example is not None and open_image(example).dtype != np.uint8:
        return _HOUNSFIELD
    return _WINDOWS[name]


def _data(result: Translation, data: dict[str, Any], found: DataSet, model_type: str) -> None:
    said = data.pop("dataset", None)
    result.set("data", "pairs", "data.dataset", "" if said == found.name else f"of {found.name}")
    result.set("data.layout", found.layout, f"data set {found.name}")
    _roots(result, data, found)
    result.set("data.preprocess.normalise", "window")
    why = "values beyond it are an error, not clipped"
    if found.window == _HOUNSFIELD:
        why = f"Hounsfield units, as the files aren't in bytes; {why}"
    result.set("data.preprocess.window", list(found.window), f"data set {found.name}", why)
    result.set("data.preprocess.outside", "error")
    plane, depth = _plane(Path(result.source), data), data.pop("depth", None)
    data.pop("image_size", None)
    shape = plane if depth is None else [result.read("data.depth", depth, count), *plane]
    result.set("data.preprocess.image_size", shape, "data.image_size" if depth is None else "data.depth, image_size")
    if model_type == "sr" and depth is not None:
        result.set("data.pairs.resample", True, "model.type=sr", "thick slices in A are brought onto the grid of B")
    _flips(result, data, found, volumes=depth is not None)
    if "num_workers" in data:
        result.take(data, "data", {"num_workers": ("data.num_workers", whole)})
    _ignore_unused(result, data, "data")
    result.leftovers(data, "data")


def _flips(result: Translation, data: dict[str, Any], found: DataSet, *, volumes: bool) -> None:
    """Left and right in images, along every axis in volumes, none in BRATS' images, whatever `random_flip` says."""
    origin = "data.random_flip" if "random_flip" in data else ""
    wanted = result.flag(data, "data", "random_flip", usual=volumes or found.name != "BRATS")
    if not wanted or (found.name == "BRATS" and not volumes):
        result.set("augment", "none", origin, "the original doesn't flip these images" if wanted else "")
        return
    result.set("augment", "flips", origin, "along every axis" if volumes else "left and right, as the original does")
    result.set("augment.flip", 0.5 if volumes else [0.0, 0.5])
    result.set("augment.mirror", 0.0)


def _roots(result: Translation, data: dict[str, Any], found: DataSet) -> None:
    """All of the training folder is trained on; the other folders are the validation and the test."""
    for key in found.roots:
        data.pop(key)
    if "train_dataroot" not in found.roots:
        result.notes.append("data.train_dataroot is not there; give data.root=FOLDER")
        return
    result.set("data.root", str(found.roots["train_dataroot"]), "data.train_dataroot")
    for key, part in (("val_dataroot", "validation"), ("sample_dataroot", "test")):
        root = found.roots.get(key)
        if root is None:
            continue
        if part == "validation" and _example(root, found.layout) is None:
            result.ignore(f"data.{key}", f"{root} holds no pairs of this kind, and the original never reads it")
            continue
        result.set(f"data.roots.{part}", str(root), f"data.{key}")


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
            "batch_size": ("data.batch_size", count),
            "n_epochs": ("trainer.max_epochs", count),
            "n_iters": ("trainer.max_steps", count),
            "snapshot_freq": ("trainer.checkpoint_every", count),
        },
    )
    every = result.read("training.validation_freq", training.pop("validation_freq", _NEVER), count)
    if every < _NEVER:
        result.set("trainer.validate_every", every, "training.validation_freq")
    else:
        result.ignore("training.validation_freq", "the original never validates; trainer.validate_every decides")
    result.set("learning_rate", "constant")
    result.leftovers(training, "training")
    rate = result.read("model.ema_rate", model.pop("ema_rate", 0.999), number)
    result.set("trainer.ema", rate if result.flag(model, "model", "ema", usual=True) else None, "model.ema")
    result.optimizer(path, optim.pop("optimizer", "Adam"), "optim.optimizer")
    result.take(optim, "optim", {"lr": ("optimizer.lr", number)})
    result.take(optim, "optim", {"grad_clip": ("trainer.gradient_clip_val", number)})
    # the optimizer's own keywords, of which our configurations leave PyTorch's values
    for key, usual, convert in (("weight_decay", 0.0, number), ("eps", 1e-8, number), ("amsgrad", False, truth)):
        value = result.read(f"optim.{key}", optim.pop(key, usual), convert)
        if value != usual:
            result.set(f"++optimizer.{key}", value, f"optim.{key}")
    beta = result.read("optim.beta1", optim.pop("beta1", 0.9), number)
    if beta != 0.9:
        result.set("++optimizer.betas", [beta, 0.999], "optim.beta1")
    result.leftovers(optim, "optim")


def _ignore_unused(result: Translation, section: dict[str, Any], prefix: str) -> None:
    for key in list(section):
        if f"{prefix}.{key}" in _UNUSED:
            section.pop(key)
            result.ignore(f"{prefix}.{key}", _UNUSED[f"{prefix}.{key}"])

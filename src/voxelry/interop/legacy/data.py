"""What the originals' pretraining and landmark files have in common: images, split, devices, folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import ConfigError
from voxelry.data.layouts.files import split_folders
from voxelry.interop.legacy.overrides import Translation, count, number, read, text, truth, whole, wholes

__all__ = [
    "add_augmentation",
    "add_data",
    "add_network",
    "add_optimizer",
    "add_rest",
    "completed",
    "data_name",
    "rank",
    "size_name",
]

_LAYOUTS = {
    "volume3d": "volumes",
    "chest": "chest",
    "hand": "hand",
    "cephalo": "cephalometric",
    "cephalometric": "cephalometric",
}
_SECTIONS = {"is_3d", "model", "dataset", "gpu", "experiment_path", "training_protocol", "inference_protocol"}
_NETWORK = (  # key, ours, the originals' own value, what it really was
    ("channel_mults", "model.multipliers", [1, 2, 4, 8], wholes, ""),
    ("attn_res", "model.head_dim", 32, count, "it was the width of an attention head"),
    ("num_head_channels", "model.heads", 4, count, "it was the number of heads"),
    ("res_blocks", "model.groups", 4, count, "it was the number of normalisation groups"),
)
_ANY_VOLUMES = "volume3d"  # the name of every folder of volumes


def completed(
    path: Path, content: Mapping[str, Any], usual: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """A file with the values that the originals' own files have for what it leaves out, and a note for each.

    Args:
        path: of the file, for messages.
        content: what it holds.
        usual: values of `model` and `dataset`; the images' size and the folders are the same for all files.

    Raises:
        ConfigError: the images' size or a folder is none.
    """
    shared = {"path": "datasets/", "name": _ANY_VOLUMES, "image_size": 64 if rank(path, content) == 3 else 256}
    every = {**usual, "dataset": {**shared, "image_channels": 1, **usual["dataset"]}}
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    notes = []
    for section, values in every.items():
        for key, value in values.items():
            if key not in result[section]:
                result[section][key] = value
                notes.append(f"{section}.{key} not given: {value}, as in the original's own files")
    for key in ("path", "name"):
        read(path, f"dataset.{key}", result["dataset"][key], text)
    result["experiment_path"] = read(path, "experiment_path", result.get("experiment_path", "runs"), text)
    result["dataset"]["image_size"] = _size(path, result["dataset"]["image_size"], rank(path, content))
    return result, notes


def _size(path: Path, size: Any, ndim: int) -> int | list[int]:
    if not isinstance(size, list):
        return int(read(path, "dataset.image_size", size, count))
    if len(size) != ndim:
        raise ConfigError(f"{path}: dataset.image_size: expected one number or {ndim}, got {size!r}")
    return [int(read(path, "dataset.image_size", along, count)) for along in size]


def rank(path: Path, content: Mapping[str, Any]) -> int:
    """2, or 3 where the file says `is_3d`.

    Raises:
        ConfigError: it says neither yes nor no.
    """
    return 3 if read(path, "is_3d", content.get("is_3d", False), truth) else 2


def size_name(path: Path, content: Mapping[str, Any], *, every_axis: bool = False) -> str:
    """The size in the originals' folder names: `256`, or `256x256` with `every_axis`."""
    size = content["dataset"]["image_size"]
    if every_axis and not isinstance(size, list):
        size = [size] * rank(path, content)
    return "x".join(map(str, size)) if isinstance(size, list) else str(size)


def data_name(path: Path, content: Mapping[str, Any]) -> str:
    """What a run's folder calls its data: the folder they are in where that is another than the file's name for them.

    `volume3d` is the name of any volumes.
    """
    dataset = content["dataset"]
    name = str(dataset["name"])
    root = _root(path, Path(dataset["path"]), name)
    return root.name if (root / "volumes").is_dir() and root.name else name


def add_data(result: Translation, path: Path, content: Mapping[str, Any], dataset: dict[str, Any]) -> None:
    """Take over the files, their split, their size and how they are loaded."""
    name, ndim = str(dataset.pop("name")), rank(path, content)
    root = _root(path, Path(dataset.pop("path")), name)
    layout = _LAYOUTS.get(name.lower(), "auto")
    if ndim == 3 and layout not in ("auto", _LAYOUTS[_ANY_VOLUMES]):
        raise ConfigError(f"{path}: is_3d: dataset.name={name} is a collection of images; expected false")
    result.set("data.layout", layout, "dataset.name")
    result.set("data.root", str(root), "dataset.path")
    _split(result, root, ndim)
    result.take(
        dataset,
        "dataset",
        {
            "image_size": ("data.preprocess.image_size", lambda value: value),
            "image_channels": ("data.image_channels", count),
            "batch_size": ("data.batch_size", count),
            "grad_accumulation": ("trainer.grad_accumulation", count),
            "pin_memory": ("data.pin_memory", truth),
        },
    )
    workers = dataset.pop("num_workers", None)
    if workers is not None:
        result.set("data.num_workers", result.read("dataset.num_workers", workers, whole), "dataset.num_workers")
    result.leftovers(dataset, "dataset")


def _split(result: Translation, root: Path, ndim: int) -> None:
    if split_folders(root):
        result.set("data.split.fractions", None)
        result.notes.append(f"split: the folders that {root} has for it")
    elif ndim == 3:
        result.set("data.split.fractions", [0.8, 0.1, 0.1])
        result.set("data.split.seed", None)
        result.notes.append("split: 80, 10 and 10 % in the order of the names, the same for pretraining and landmarks")
    else:
        result.set("data.split.fractions", None)
        result.notes.append(
            "split: the collection's own by name, the same for pretraining and landmarks (195, 34, rest of chest; 550, "
            "59, rest of hand; 130, 20, rest of cephalo); with fewer images 70, 10 and 20 %, drawn by data.split.seed"
        )


def _root(path: Path, folder: Path, name: str) -> Path:
    """Where the data are: the named folder, the folder itself, or of any volumes its only subfolder with some in it.

    Raises:
        ConfigError: none or several of these, or a folder of other data.
    """
    if (folder / name).is_dir():
        return folder / name
    if (folder / "volumes").is_dir() or not folder.is_dir():
        return folder
    inside = [entry for entry in sorted(folder.iterdir()) if (entry / "volumes").is_dir()]
    names = ", ".join(entry.name for entry in inside)
    if inside and name.lower() not in _LAYOUTS:
        raise ConfigError(f"{path}: dataset.name: {folder} holds no {name}; expected one of its datasets: {names}")
    if len(inside) > 1:
        raise ConfigError(f"{path}: dataset.path: {folder} holds several datasets ({names}); name one of them")
    return inside[0] if inside else folder


def add_augmentation(result: Translation, ndim: int, *, scaled: bool = False) -> None:
    """The small movements of the 2-D originals; none of volumes.

    Args:
        scaled: whether images are scaled as well, by 2 %.
    """
    if ndim == 3:
        result.set("augment", "none")
        result.notes.append("augmentation: none, as the original")
        return
    result.set("augment", "light")
    result.set("augment.movement_probability", 0.5)
    if scaled:
        result.set("augment.scale", 0.02)
    result.notes.append(f"augmentation: shift and {'scale 2 %, ' if scaled else ''}rotation 2, half of the time")


def add_network(result: Translation, content: Mapping[str, Any], unet: dict[str, Any]) -> None:
    """The network's width, depth and attention; what the file doesn't say is as it was in the originals' own files."""
    result.set("model", "unet_original")
    size = content["dataset"]["image_size"]
    width = size[0] if isinstance(size, list) else size
    result.set("model.width", width, "dataset.image_size", "the original's width was the image size")
    for key, ours, usual, convert, why in _NETWORK:
        if key in unet:
            origin = f"model.unet.{key}"
            result.set(ours, result.read(origin, unet.pop(key), convert), origin, why)
        else:
            result.set(ours, usual)
            result.notes.append(f"model.unet.{key} not given -> {ours}={usual}, as in the original")


def add_optimizer(result: Translation, path: Path, model: dict[str, Any]) -> None:
    """The optimizer and its learning rate."""
    result.optimizer(path, model.pop("optimizer"), "model.optimizer")
    result.set("optimizer.lr", result.read("model.lr", model.pop("lr"), number), "model.lr")


def add_rest(result: Translation, path: Path, content: Mapping[str, Any]) -> None:
    """The device, and whatever else stands at the top of a file.

    Raises:
        ConfigError: a GPU that there is not.
    """
    result.set("trainer.devices", _devices(result, path, content.get("gpu")), "gpu", "one device, as the original")
    for key in content:
        if key == "model_for_inference":
            result.ignore(key, "it played no part in the original either")
        elif key not in _SECTIONS:
            result.ignore(key, "no such setting")


def _devices(result: Translation, path: Path, gpu: Any) -> int | list[int]:
    import torch

    number = _gpu(path, gpu)
    if number is not None and number < 0:
        result.set("trainer.accelerator", "cpu", "gpu")
        return 1
    # the original let the environment's choice stand, and used the first GPU of several
    if number is None or "CUDA_VISIBLE_DEVICES" in os.environ or not torch.cuda.is_available():
        return 1
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"{path}: gpu: expected 0 to {torch.cuda.device_count() - 1}, got {gpu!r} "
            "(or choose by the environment, CUDA_VISIBLE_DEVICES=0)"
        )
    return [number]


def _gpu(path: Path, gpu: Any) -> int | None:
    """The number of the first GPU that is named; -1 for the CPU, None where nothing is said."""
    first = (gpu[0] if gpu else "none of a list") if isinstance(gpu, list) else gpu
    if first is None:
        return None
    said = "" if isinstance(first, bool) else str(first).split(",")[0].strip().lower().removeprefix("cuda:")
    named = {"cuda": 0, "cpu": -1, "-1": -1}
    if said in named:
        return named[said]
    if not said.isdecimal():
        raise ConfigError(f"{path}: gpu: expected a number such as 0, a list of them, cuda:0 or cpu, got {gpu!r}")
    return int(said)

"""What the originals' pretraining and landmark files have in common: images, split, devices, folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import ConfigError
from voxelry.data.layouts import split_folders
from voxelry.interop.overrides import Translation, truth, whole

__all__ = ["add_augmentation", "add_data", "add_network", "add_optimizer", "add_rest", "data_name", "rank", "size_name"]

_LAYOUTS = {
    "volume3d": "volumes",
    "chest": "chest",
    "hand": "hand",
    "cephalo": "cephalometric",
    "cephalometric": "cephalometric",
}
_SECTIONS = {"is_3d", "model", "dataset", "gpu", "experiment_path", "training_protocol", "inference_protocol"}
_NETWORK = (  # key, ours, the originals' own value, what it really was
    ("channel_mults", "model.multipliers", [1, 2, 4, 8], ""),
    ("attn_res", "model.head_dim", 32, "it was the width of an attention head"),
    ("num_head_channels", "model.heads", 4, "it was the number of heads"),
    ("res_blocks", "model.groups", 4, "it was the number of normalisation groups"),
)


def rank(content: Mapping[str, Any]) -> int:
    """2, or 3 where the file says `is_3d`."""
    return 3 if truth(content.get("is_3d", False)) else 2


def size_name(content: Mapping[str, Any], *, every_axis: bool = False) -> str:
    """The size in the originals' folder names: `256`, or `256x256` with `every_axis`."""
    size = content["dataset"].get("image_size", 256)
    if every_axis and not isinstance(size, list):
        size = [size] * rank(content)
    return "x".join(map(str, size)) if isinstance(size, list) else str(size)


def data_name(path: Path, content: Mapping[str, Any]) -> str:
    """What a run's folder calls its data: the folder they are in where that is another than the file's name for them.

    `volume3d` is the name of any volumes.
    """
    dataset = content["dataset"]
    name = str(dataset.get("name", "volume3d"))
    root = _root(path, Path(dataset.get("path", "datasets/")), name)
    return root.name if (root / "volumes").is_dir() and root.name else name


def add_data(result: Translation, path: Path, content: Mapping[str, Any], dataset: dict[str, Any]) -> None:
    """Take over the files, their split, their size and how they are loaded."""
    name = str(dataset.pop("name", "volume3d"))
    root = _root(path, Path(dataset.pop("path", "datasets/")), name)
    result.set("data.layout", _LAYOUTS.get(name.lower(), "auto"), "dataset.name")
    result.set("data.root", str(root), "dataset.path")
    _split(result, root, rank(content))
    result.take(
        dataset,
        "dataset",
        {
            "image_size": ("data.preprocess.image_size", lambda value: value),
            "image_channels": ("data.image_channels", whole),
            "batch_size": ("data.batch_size", whole),
            "grad_accumulation": ("trainer.grad_accumulation", whole),
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


def add_augmentation(result: Translation, content: Mapping[str, Any], *, scaled: bool = False) -> None:
    """The small movements of the 2-D originals; none of volumes.

    Args:
        scaled: whether images are scaled as well, by 2 %.
    """
    if rank(content) == 3:
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
    result.set("model", "unet_seed")
    size = content["dataset"].get("image_size", 256)
    width = result.read("dataset.image_size", size[0] if isinstance(size, list) and size else size, whole)
    result.set("model.width", width, "dataset.image_size", "the original's width was the image size")
    for key, ours, usual, why in _NETWORK:
        if key in unet:
            result.set(ours, unet.pop(key), f"model.unet.{key}", why)
        else:
            result.set(ours, usual)
            result.notes.append(f"model.unet.{key} not given -> {ours}={usual}, as in the original")


def add_optimizer(result: Translation, path: Path, model: dict[str, Any]) -> None:
    """The optimizer and its learning rate."""
    if "optimizer" in model:
        result.optimizer(path, model.pop("optimizer"), "model.optimizer")
    if "lr" in model:
        result.set("optimizer.lr", result.read("model.lr", model.pop("lr"), float), "model.lr")


def add_rest(result: Translation, path: Path, content: Mapping[str, Any]) -> None:
    """The device, and whatever else stands at the top of a file.

    Raises:
        ConfigError: a GPU that there is not.
    """
    result.set("trainer.devices", _devices(path, content.get("gpu")), "gpu", "one device, as the original")
    for key in content:
        if key == "model_for_inference":
            result.ignore(key, "it played no part in the original either")
        elif key not in _SECTIONS:
            result.ignore(key, "no such setting")


def _devices(path: Path, gpu: Any) -> int | list[int]:
    import torch

    # the original let the environment's choice stand, and used the first GPU of several
    if gpu is None or "CUDA_VISIBLE_DEVICES" in os.environ or not torch.cuda.is_available():
        return 1
    text = str(gpu).split(",")[0].strip()
    if not text.isdecimal() or int(text) >= torch.cuda.device_count():
        raise ConfigError(
            f"{path}: gpu: expected 0 to {torch.cuda.device_count() - 1}, got {gpu!r} "
            "(or choose by the environment, CUDA_VISIBLE_DEVICES=0)"
        )
    return [int(text)]

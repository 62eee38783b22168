"""Weights to start from: a bundle of ours, a checkpoint of a run, or published files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.bundle.bundle import read_bundle
from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.bundle.earlier import network_of_today
from voxelry.bundle.seen import cases_of_parts, lineage
from voxelry.core.errors import CheckpointError, SettingError
from voxelry.core.plain_yaml import parse_yaml
from voxelry.core.rank import per_axis
from voxelry.interop.weights.reference import SOURCES, from_reference, source_of
from voxelry.models.networks import NETWORKS, build_network
from voxelry.models.tensor_file import load_reference_file

__all__ = ["Pretrained", "cases_seen_by", "preprocess_of", "read_pretrained"]

# what a fine-tuned network may have of its own; all else is the pretrained one's architecture
_FREE = ("checkpointing", "dropout")
_PLAIN_RANGE = (0.0, 1.0)
_UNETS = ("unet", "folded_unet")


@dataclass
class Pretrained:
    """A network that was trained before.

    Attributes:
        kind: the name of its class, one of `networks.NETWORKS` or of `backbones.build.BACKBONES`.
        settings: keywords that build it again.
        weights: its state dict.
        input_range: the range of values its images had, images in [0, 1] being the files' own.
        source: where it came from, for messages.
        task: what it was trained for, by its name in `bundle.registry.TASKS`; empty where that isn't known.
    """

    kind: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    input_range: tuple[float, float]
    source: str
    task: str = ""

    @property
    def ndim(self) -> int:
        """Rank of the images that it was trained on."""
        inner: Mapping[str, Any] = self.settings
        while "ndim" not in inner:
            inner = inner["backbone"]
        return int(inner["ndim"])

    @property
    def is_unet(self) -> bool:
        """Whether `build` makes another one of it."""
        return self.kind in _UNETS

    @property
    def stem_channels(self) -> int:
        """Inputs of a U-Net's first layer that are its image's; those of an estimate come before them."""
        voxels = prod(per_axis(self.settings.get("fold", 1), self.ndim, "fold"))
        return int(self.settings["in_channels"]) * voxels

    def build(
        self, config: DictConfig, *, ndim: int, in_channels: int, out_channels: int, same_answer: bool = True
    ) -> nn.Module:
        """A new U-Net of this architecture with a run's own channels and rank.

        A 2-D network may start a 3-D one (its kernels are inflated); the other way round is refused.

        Args:
            same_answer: whether the new one answers what this one does; only then can its answer be an estimate that
                is fed back.

        Raises:
            CheckpointError: the pretrained network is of a higher rank.
        """
        if self.settings["ndim"] > ndim:
            raise CheckpointError(
                f"{self.source}: a network of rank {self.settings['ndim']} can't start one of rank {ndim}"
            )
        plain: Any = OmegaConf.to_container(config, resolve=True)
        own = {key: plain[key] for key in _FREE if key in plain}
        settings = {**self.settings, **own, "ndim": ndim, "in_channels": in_channels, "out_channels": out_channels}
        alike = same_answer and out_channels == self.settings["out_channels"]
        settings["self_condition"] = bool(self.settings["self_condition"]) and alike
        if not settings["self_condition"]:
            settings["condition_channels"] = None
        return build_network(self.kind, settings)


def read_pretrained(path: Path, *, ndim: int | None = None) -> Pretrained:
    """The network in `path`.

    Args:
        path: a bundle folder, a run's folder, a `.ckpt` of ours, or published weights of one of `SOURCES`.
        ndim: rank that published backbones and detectors of a lower one are lifted to; U-Nets are by `build`.

    Raises:
        CheckpointError: nothing there that can be used.
    """
    if (path / "bundle").is_dir():
        path = path / "bundle"
    if path.is_dir():
        bundle = read_bundle(path)
        found = _of(bundle.task.network, _input_range(bundle.task.settings()), path)
        return replace(found, task=str(bundle.config["task"]["name"]))
    if path.suffix == ".ckpt":
        return _of_checkpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such bundle or checkpoint")
    weights = load_reference_file(path, which="ema")
    source = source_of(weights)
    if source is not None:
        found = _of(from_reference(source, {}, weights), _PLAIN_RANGE, path)
        found = replace(found, task=_published_task(source, found.settings))
        if ndim is None or found.is_unet or found.ndim >= ndim:
            return found
        return _of(from_reference(source, {}, weights, ndim), _PLAIN_RANGE, path)
    raise CheckpointError(f"{path}: weights of no network that is known; expected those of {', '.join(SOURCES)}")


def cases_seen_by(path: Path) -> list[dict[str, Any]]:
    """The trainings behind what `read_pretrained` reads, as `bundle.seen.lineage` has them; of published files none.

    Raises:
        CheckpointError: nothing there that can be used.
    """
    if path.is_dir():
        return lineage(_record_of(path))
    if path.suffix != ".ckpt":
        return []
    state = read_checkpoint(path).get("voxelry", {})
    return [cases_of_parts(state.get("run", {}).get("cases", {})), *state.get("earlier", ())]


def preprocess_of(path: Path) -> dict[str, Any]:
    """Keywords of the `Preprocess` that images went through on which the weights of a bundle or run were trained.

    Of files of weights, which don't keep them, none.

    Raises:
        CheckpointError: a folder without a bundle.
    """
    return dict(_record_of(path).get("preprocess") or {}) if path.is_dir() else {}


def _record_of(folder: Path) -> dict[str, Any]:
    """The settings file of a bundle or of a run's.

    Raises:
        CheckpointError: there is none.
    """
    place = folder / "bundle" if (folder / "bundle").is_dir() else folder
    try:
        content = parse_yaml((place / "config.yaml").read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder}: not a bundle, config.yaml is missing or not plain YAML") from error
    return dict(content)


def _of_checkpoint(path: Path) -> Pretrained:
    checkpoint = read_checkpoint(path)
    description = checkpoint.get("voxelry", {})
    settings = network_of_today(description.get("network", {}))
    kind = settings.pop("name", None)
    if kind not in NETWORKS:
        raise CheckpointError(f"{path}: the network's settings are missing; expected a checkpoint of a voxelry run")
    prefix = "task.network."
    state = checkpoint["state_dict"]
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    task = str(description["task"].get("name", ""))
    return Pretrained(kind, settings, weights, _input_range(description["task"]), str(path), task)


def _published_task(source: str, settings: Mapping[str, Any]) -> str:
    """What published weights were trained for: of the X-ray networks, those that answer an image are denoisers."""
    if source == "fast-ddpm":
        return "translate"
    if source == "diffusion-xray":
        return "pretrain" if settings["out_channels"] == settings["in_channels"] else "landmarks"
    return ""


def _of(network: Any, input_range: tuple[float, float], path: Path) -> Pretrained:
    try:
        kind = network.name if isinstance(network, Backbone) else NETWORKS.name_of(type(network))
    except SettingError as error:
        raise CheckpointError(f"{path}: holds {error}") from error
    return Pretrained(kind, network.settings(), dict(network.state_dict()), input_range, str(path))


def _input_range(settings: Mapping[str, Any]) -> tuple[float, float]:
    low, high = settings.get("diffusion_range") or settings.get("input_range") or _PLAIN_RANGE
    return float(low), float(high)

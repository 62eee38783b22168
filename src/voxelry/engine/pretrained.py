"""Weights to start from: a bundle of ours, a checkpoint of a run, or the original's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from voxelry.core.errors import CheckpointError
from voxelry.engine.bundle import read_bundle
from voxelry.engine.checkpoints import read_checkpoint
from voxelry.interop.reference import SOURCES, from_reference, load_reference_file
from voxelry.models.unet import UNet

__all__ = ["network_settings", "pretrained_weights"]

# what a fine-tuned network may have of its own; all else is the pretrained one's architecture
_FREE = ("ndim", "in_channels", "out_channels", "self_condition", "checkpointing")


def pretrained_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The U-Net in `path`: its weights, the settings that build it, and what to call it in messages.

    Args:
        path: a bundle folder, a run's folder, a `.ckpt` of ours, or a `.pt` of the original project.

    Raises:
        CheckpointError: nothing there that can be used.
    """
    if (path / "bundle").is_dir():
        path = path / "bundle"
    if path.is_dir():
        network = read_bundle(path).task.network
        return _of(network, path)
    if path.suffix == ".ckpt":
        checkpoint = read_checkpoint(path)
        settings = dict(checkpoint.get("voxelry", {}).get("network", {}))
        if settings.pop("name", None) != "unet":
            raise CheckpointError(f"{path}: the network's settings are missing; expected a checkpoint of a voxelry run")
        prefix = "task.network."
        state = checkpoint["state_dict"]
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return weights, settings, str(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such bundle or checkpoint")
    weights = load_reference_file(path)
    for source, module in SOURCES.items():
        if any(name == module.STEM or name.endswith("." + module.STEM) for name in weights):
            return _of(from_reference(source, {}, weights), path)
    raise CheckpointError(f"{path}: weights of no network that is known; expected those of {', '.join(SOURCES)}")


def _of(network: torch.nn.Module, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    if not isinstance(network, UNet):
        raise CheckpointError(f"{path}: holds a {type(network).__name__}, expected a UNet")
    return dict(network.state_dict()), network.settings(), str(path)


def network_settings(
    pretrained: dict[str, Any], config: DictConfig, *, ndim: int, in_channels: int, out_channels: int, source: str
) -> dict[str, Any]:
    """The pretrained architecture with this run's channels and rank.

    A 2-D network may start a 3-D one (its kernels are inflated); the other way round is refused.

    Raises:
        CheckpointError: the pretrained network is of a higher rank.
    """
    if pretrained["ndim"] > ndim:
        raise CheckpointError(f"{source}: a network of rank {pretrained['ndim']} can't start one of rank {ndim}")
    own = {key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key in _FREE}
    own.update(ndim=ndim, in_channels=in_channels, out_channels=out_channels)
    settings = {**pretrained, **{key: value for key, value in own.items() if value is not None}}
    # a map of landmarks is no estimate of the image, so it is not fed back
    settings["self_condition"] = bool(pretrained["self_condition"]) and out_channels == pretrained["out_channels"]
    return settings

"""The configuration files of the original projects, as overrides of ours.

Several of their keys do not mean what they are called (`attn_res` is the width of an attention head,
`num_head_channels` the number of heads, `res_blocks` the number of normalisation groups, and the image
size sets the width of the network). Each is translated by what it did, with the protocol around it: epochs,
schedule, augmentation, split, folders. Every translation, change and omission is noted for the user to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import ConfigError
from voxelry.interop.legacy import fast_ddpm_config
from voxelry.interop.legacy.landmarks import landmark_runs
from voxelry.interop.legacy.options import OriginalOptions
from voxelry.interop.legacy.overrides import Translation, read_settings
from voxelry.interop.legacy.pretraining import pretraining

__all__ = ["Translation", "translate"]

_PRETRAINING = ("unet", "beta_schedule", "iterations")
_SECTIONS = (  # an outer one before those in it
    "model.unet",
    "model.beta_schedule.train",
    "training_protocol.scratch",
    "training_protocol.finetuning",
    "inference_protocol",
)


def translate(path: Path, options: OriginalOptions = OriginalOptions()) -> list[Translation]:  # noqa: B008 it is frozen
    """Translate a configuration file; a downstream file may ask for two runs, from scratch and fine-tuned.

    Args:
        path: of the file.
        options: what the command line says beside it.

    Raises:
        FileError: missing, or not JSON or YAML.
        ConfigError: the file lacks what both originals need, or asks for something voxelry doesn't have.
    """
    content = read_settings(path)
    if fast_ddpm_config.is_theirs(content):
        return [fast_ddpm_config.translate(path, content)]
    model = _mapping(path, content, "model")
    _mapping(path, content, "dataset")
    _check_sections(path, content)
    if "name" in model or "training_protocol" in content or "epochs" in model:
        return landmark_runs(path, content, options)
    if any(key in model for key in _PRETRAINING):
        options.refuse(path, "a file of the pretraining")
        return [pretraining(path, content)]
    raise ConfigError(f"{path}: model: expected unet and beta_schedule (pretraining) or name (landmarks)")


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: expected an object, got {value!r}")
    return value


def _check_sections(path: Path, content: Mapping[str, Any]) -> None:
    for section in _SECTIONS:
        inside: Any = content
        for key in section.split("."):
            inside = inside.get(key, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"{path}: {section}: expected an object, got {inside!r}")

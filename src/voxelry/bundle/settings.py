"""What a bundle says of itself, read and checked in a moment: neither weights nor torch are loaded for it."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.core.plain_yaml import parse_yaml
from voxelry.core.remote import as_path

__all__ = ["FILES", "FORMAT", "bundle_folder", "digest", "read_settings"]

FORMAT = 1
FILES = ("weights.safetensors", "config.yaml", "card.md")


def bundle_folder(path: str | PathLike[str]) -> Path:
    """A bundle's folder, of its own path or of the run that made it."""
    folder = as_path(path)
    return folder / "bundle" if (folder / "bundle").is_dir() else folder


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a bundle on this machine.

    Raises:
        CheckpointError: not a bundle, weights that can't be read, or settings that were changed since it was written.
        ConfigError: of another format than this version knows.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder}: a file; expected the bundle, a folder with {FILES[0]} and {FILES[1]}")
    missing = [name for name in FILES[:2] if not (folder / name).is_file()]
    if missing:
        hint = ""
        if (folder / "checkpoints").is_dir():
            hint = " (the run there has not ended; resume=true goes on with it)"
        raise CheckpointError(f"{folder}: not a bundle, {missing[0]} is missing{hint}")
    weights, path = folder / FILES[0], folder / FILES[1]
    text = path.read_bytes()
    try:
        with safe_open(weights, framework="np") as file:  # the header alone
            expected = (file.metadata() or {}).get("config_sha256")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: not a readable safetensors file: {error}") from error
    if expected != digest(text):
        raise CheckpointError(f"{path}: changed since the bundle was written, or not this bundle's own")
    try:
        config = parse_yaml(text)
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not plain YAML") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(f"{path}: format: expected {FORMAT}")
    return config


def digest(content: bytes) -> str:
    """What tells settings from others."""
    return hashlib.sha256(content).hexdigest()

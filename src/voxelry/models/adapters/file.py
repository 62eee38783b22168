"""An adapter on disk: `adapter.safetensors` and `adapter.yaml`; nothing in them can run code.

The weights carry the SHA-256 of the settings, as in a bundle, so that neither is read with another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from voxelry.core.atomic import replacing
from voxelry.core.errors import CheckpointError, FileError
from voxelry.core.plain_yaml import parse_yaml

__all__ = ["read_adapter", "read_record", "write_adapter"]

FORMAT = 1
WEIGHTS, CONFIG = "adapter.safetensors", "adapter.yaml"
_PARTS = {WEIGHTS, CONFIG, "template.nii.gz"}  # the last of an adapter that was trained on registered scans


def write_adapter(
    folder: Path,
    record: Mapping[str, Any],
    state: Mapping[str, Tensor],
    beside: Mapping[str, Callable[[Path], Any]] | None = None,
) -> Path:
    """Write all files or none; an older adapter at the same place is replaced.

    Args:
        folder: the adapter's.
        record: plain values, with the adapter's `settings` and the hash of its base.
        state: its tensors.
        beside: further files by their names, each written by a function of its place.

    Raises:
        FileError: the folder holds something else, or can't be written.
    """
    strangers = sorted({entry.name for entry in folder.iterdir()} - _PARTS) if folder.is_dir() else []
    if strangers:
        raise FileError(folder, f"holds {strangers[0]}, which is no part of an adapter", "choose another folder")
    text = yaml.safe_dump({"format": FORMAT, **record}, sort_keys=False).encode()
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with replacing(folder) as place:
        place.mkdir()
        (place / CONFIG).write_bytes(text)
        for name, write in (beside or {}).items():
            write(place / name)
        save_file(kept, place / WEIGHTS, metadata={"config_sha256": hashlib.sha256(text).hexdigest()})
    return folder


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_adapter` wrote: the record and the tensors.

    Raises:
        CheckpointError: a file is missing, broken, or was changed since.
    """
    return _read(folder, weights=True)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an adapter alone; errors as `read_adapter`."""
    return _read(folder, weights=False)[0]


def _read(folder: Path, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: not an adapter, {missing[0]} is missing")
    text = (folder / CONFIG).read_bytes()
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            expected = (file.metadata() or {}).get("config_sha256")
            state = {name: file.get_tensor(name) for name in (file.keys() if weights else ())}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: not a readable safetensors file: {error}") from error
    if expected != hashlib.sha256(text).hexdigest():
        raise CheckpointError(f"{folder / CONFIG}: changed since the adapter was written, or not this adapter's own")
    try:
        record = parse_yaml(text)
    except yaml.YAMLError as error:
        raise CheckpointError(f"{folder / CONFIG}: not plain YAML") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("settings"), dict):
        raise CheckpointError(f"{folder / CONFIG}: format: expected {FORMAT}")
    return record, state

"""What a run was made of, written when it begins: enough to do it again and to tell what is different then."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import voxelry
from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError

__all__ = ["MANIFEST", "differences", "given_settings", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
_FORMAT = 1
_PACKAGES = ("torch", "numpy", "scipy", "numba", "lightning", "nibabel", "SimpleITK", "pydicom", "tifffile", "torchio",
             "peft", "safetensors")  # fmt: skip


def given_settings(config: DictConfig) -> dict[str, Any]:
    """All settings of a run as they are before it begins, plain values."""
    found: Any = OmegaConf.to_container(config, resolve=True)
    return dict(found)


def write_manifest(folder: Path, settings: Mapping[str, Any], data: Mapping[str, Mapping[str, str]]) -> Path:
    """Write `manifest.json`: settings with the seed, versions, commit, digests of the cases, machine.

    Args:
        folder: the run's.
        settings: see `given_settings`.
        data: by part the digest of each case.

    Raises:
        FileError: it can't be written.
    """
    said = {
        "format": _FORMAT,
        "settings": settings,
        "seed": settings.get("seed"),
        "versions": _versions(),
        "commit": _commit(),
        "machine": _machine(),
        "data": {part: dict(digests) for part, digests in data.items()},
        "folder": str(Path.cwd()),
    }
    with replacing(folder / MANIFEST) as place:
        place.write_text(json.dumps(said, indent=1, default=str) + "\n", encoding="utf-8")
    return folder / MANIFEST


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises:
        FileError: none there, or something else.
    """
    path = folder / MANIFEST
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(path, "no such file", "expected the folder of a run") from None
    except (OSError, ValueError) as error:
        raise FileError(path, f"can't be read: {error}") from error
    if not isinstance(said, dict) or said.get("format") != _FORMAT or not isinstance(said.get("settings"), dict):
        raise FileError(path, f"expected a manifest of format {_FORMAT}")
    return said


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is different between two manifests beside their settings, a line each."""
    for name in ("versions", "machine"):
        theirs, ours = before.get(name) or {}, now.get(name) or {}
        for key in sorted({*theirs, *ours}):
            if theirs.get(key) != ours.get(key):
                yield f"{name}: {key} was {theirs.get(key)}, is {ours.get(key)}"
    if before.get("commit") != now.get("commit"):
        yield f"commit: was {before.get('commit')}, is {now.get('commit')}"
    for part in sorted({*(before.get("data") or {}), *(now.get("data") or {})}):
        theirs, ours = (dict((one.get("data") or {}).get(part) or {}) for one in (before, now))
        changed = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        if changed:
            yield f"data: {len(changed)} {part} cases are others: {', '.join(changed[:5])}"


def _versions() -> dict[str, str]:
    found = {"voxelry": voxelry.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of the checkout that the package lies in, with a `+` where files were changed since; None without one."""
    folder = Path(voxelry.__file__).parent
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "."))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0] + ("+" if told[1] else "")


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }

"""A folder that `voxelry prepare` wrote: volumes and labels on an isotropic grid, slices, shapes, and a manifest.

    manifest.json
    volumes/NAME.nii.gz, labels/NAME.nii.gz
    sdf/, meshes/, slices/, cases/

`reconstruct` takes its slices as they are on disk; every other task its volumes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from voxelry.core.errors import FileError
from voxelry.core.remote import as_path
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["AGAIN", "MANIFEST", "VERSION", "Prepared", "is_prepared_folder", "prepared_cases", "read_manifest"]

MANIFEST = "manifest.json"
VERSION = 2
AGAIN = "run voxelry prepare again"


class Prepared(Layout):
    """The cases of a manifest."""

    certain = False  # it is `volumes`, too, with cases that a manifest may not have

    def fits(self, root: Path) -> bool:
        """By slices with a manifest or with records of cases."""
        return is_prepared_folder(root)

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per case of the manifest, with the split that the data came with."""
        return prepared_cases(root)


def prepared_cases(root: str | Path) -> list[Case]:
    """The cases of a manifest, with the split that the data came with.

    Raises:
        FileError: no manifest, or a damaged one.
    """
    root = as_path(root)
    manifest = read_manifest(root)
    names = {int(number): str(name) for number, name in (manifest.get("classes") or {}).items()}
    return [
        Case(
            case["name"],
            root / case["volume"],
            labels=root / case["labels"],
            split=case["split"],
            layout="prepared",
            modality=case["modality"],
            classes=names,
        )
        for case in manifest["cases"]
    ]


def is_prepared_folder(root: str | Path) -> bool:
    """Whether `prepare` wrote a folder, or began to: slices with a manifest or with records of cases."""
    root = as_path(root)
    return (root / "slices").is_dir() and ((root / MANIFEST).is_file() or (root / "cases").is_dir())


def read_manifest(root: str | Path) -> dict[str, Any]:
    """What `prepare` wrote of a folder.

    Raises:
        FileError: there is none, or it is damaged.
    """
    path = as_path(root) / MANIFEST
    if not path.is_file():
        unfinished = is_prepared_folder(root)
        raise FileError(
            path,
            "no such file; expected a folder made by voxelry prepare",
            f"{AGAIN} to finish it" if unfinished else "",
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if manifest["version"] != VERSION or not manifest["cases"]:
            raise ValueError("another version, or no case")
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(path, f"is damaged: {error}", AGAIN) from None
    return manifest

"""The folder of a command's outputs, where it lies elsewhere.

    OUT/.voxelry/NAME.json    what became of one input, written after its outputs

The ledger itself, the outputs that aren't complete, and finished parts of files are on this machine, in a folder named
after the address; a command on another machine learns from the rows beside the outputs what is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import FileError
from voxelry.core.fetch import put, remove
from voxelry.core.home import state_folder
from voxelry.core.remote import Remote, reaching

__all__ = ["OutputsElsewhere", "home_of"]

_HOME = ".voxelry"
_COLUMNS = ("name", "input", "files", "model", "settings", "main", "seconds")
_FORMAT = 1

Stamps = list[tuple[str, int, int]]


def home_of(folder: Remote) -> Path:
    """Where the ledger of such a folder is on this machine."""
    return state_folder() / "outputs" / hashlib.sha256(str(folder).encode()).hexdigest()[:24]


class OutputsElsewhere:
    """What is in such a folder, listed once, and the rows beside the outputs.

    Args:
        folder: its address.

    Raises:
        FileError: it can't be reached.
    """

    def __init__(self, folder: Remote):
        self.folder = folder
        self._there: dict[str, dict[str, os.stat_result]] = {}
        for file, status in folder.files().items():
            name, *inside = file.relative_to(folder).parts
            self._there.setdefault(name, {})["/".join(inside)] = status

    def stamps(self, name: str) -> Stamps:
        """As `data.cache.stamps`, of an output as it was at the beginning or when it was put; else empty."""
        return [(part, one.st_size, one.st_mtime_ns) for part, one in sorted(self._there.get(name, {}).items())]

    def put(self, output: Path) -> None:
        """Copy an output there, in place of what has its name.

        Raises:
            FileError: it can't be written.
        """
        target = self.folder / output.name
        put(output, target)
        written = {target: target.stat()} if output.is_file() else target.files()
        depth = len(target.parts)
        self._there[output.name] = {"/".join(file.parts[depth:]): status for file, status in written.items()}

    def note(self, row: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
        """Write the row of an input whose outputs are there.

        Raises:
            FileError: it can't be written.
        """
        said: dict[str, Any] = {"format": _FORMAT, **{name: row[name] for name in _COLUMNS}}
        said["outputs"] = {name: [digest, self.stamps(name)] for name, digest in outputs.items()}
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "row.json"
            place.write_text(json.dumps(said), encoding="utf-8")
            put(place, self.folder / _HOME / f"{row['name']}.json")

    def remove(self, name: str) -> None:
        """Delete an output.

        Raises:
            FileError: it can't be deleted.
        """
        for inside in self._there.pop(name, {}):
            remove(self.folder / name / inside if inside else self.folder / name)

    def forget(self, name: str) -> None:
        """Delete the row of an input.

        Raises:
            FileError: it can't be deleted.
        """
        self._there.get(_HOME, {}).pop(f"{name}.json", None)
        remove(self.folder / _HOME / f"{name}.json")

    def rows(self) -> Iterator[tuple[dict[str, Any], list[tuple[str, str, str]]]]:
        """The rows beside the outputs, and of each the name, the digest and the stamps of its outputs.

        Raises:
            FileError: one that isn't such a row.
        """
        places = [self.folder / _HOME / name for name in self._there.get(_HOME, {}) if name.endswith(".json")]
        if not places:
            return
        with reaching(self.folder) as (files, _):
            keys = [files._strip_protocol(str(place)) for place in places]
            found = files.cat(keys) if len(keys) > 1 else {keys[0]: files.cat_file(keys[0])}
        for place, key in zip(places, keys, strict=True):
            try:
                yield _read(found[key])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise FileError(place, f"no row of a ledger: {error}", "delete it") from error


def _read(content: bytes) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """A row and its outputs.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: something else.
    """
    row = json.loads(content)
    if row["format"] != _FORMAT:
        raise ValueError(f"format: expected {_FORMAT}, got {row['format']}")
    outputs = [(name, str(digest), json.dumps(marks)) for name, (digest, marks) in row["outputs"].items()]
    if any("/" in name for name in (row["name"], row["main"], *row["outputs"])):
        raise ValueError("an output in another folder")
    return {name: row[name] for name in _COLUMNS}, outputs

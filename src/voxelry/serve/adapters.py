"""The adapters that a page offers for its model: those that were named, and those that trainings left beside it.

Beside the base `runs/base` are `runs/base/adapter`, those in `runs/base/adapters/` and those of other runs,
`runs/liver/adapter`; what was trained on another base is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxelry.core.errors import CheckpointError, SettingError
from voxelry.core.fetch import fetch
from voxelry.serve import later

__all__ = ["AdapterChoice", "load_adapters"]


def load_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """The same model with adapters, of which the first one is active; errors as `ModelAdapters.load`."""
    names = [_load(model, folder) for folder in folders]
    if names:
        model.adapters.switch(names[0])
    return model


class AdapterChoice:
    """The adapters of a model by name, loaded when they are first chosen.

    Args:
        model: a `bundle.model.Model`, perhaps with adapters already.
    """

    def __init__(self, model: Any):
        self.model = model
        loaded = model.adapters.folders if "adapters" in vars(model) else {}
        self._folders: dict[str, Path] = dict(loaded)
        for folder in _beside(model):
            if folder not in self._folders.values():
                self._folders[_free_name(folder, tuple(self._folders))] = folder

    @property
    def folders(self) -> dict[str, Path]:
        """Where each of them lies."""
        return self._folders

    @property
    def active(self) -> str | None:
        """The one that answers; None for the base alone."""
        name: str | None = self.model.adapters.active if self._folders else None
        return name

    def switch(self, name: Any) -> None:
        """Answer with an adapter from now on; None: with the base alone.

        Raises:
            CheckpointError: it can't be loaded.
            SettingError: there is none of that name.
        """
        if name is not None and name not in list(self._folders):  # whatever was sent
            raise SettingError(f"adapter: expected one of {', '.join(self._folders) or 'none'}, got {name!r}")
        if name is None or name in self.model.adapters.names:
            if self._folders:
                self.model.adapters.switch(name)
        else:
            self.model.adapters.load(self._folders[name], name)


def _load(model: Any, folder: Path) -> str:
    place = fetch(_place(folder))
    found: str = model.adapters.load(place, _free_name(place, model.adapters.names))
    return found


def _place(folder: Path) -> Path:
    """The adapter of a run, or itself."""
    return folder if (folder / "adapter.yaml").is_file() else folder / "adapter"


def _free_name(folder: Path, taken: Sequence[str]) -> str:
    """The adapter's own name, with a number where another has it."""
    name = str(later.read_record(folder).get("name") or "adapter")
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}_{number}"
    return free


def _beside(model: Any) -> list[Path]:
    """Adapters on disk of this very base."""
    path = model.bundle.path
    if not model.recipe.adaptable or not isinstance(path, Path):
        return []
    run = path.parent if path.name == "bundle" else path
    places = [run / "adapter", *sorted(run.glob("adapters/*")), *sorted(run.parent.glob("*/adapter"))]
    found = []
    for folder in dict.fromkeys(map(_place, places)):
        try:
            if later.read_record(folder)["base_sha256"] == model.adapters.base:
                found.append(folder)
        except (CheckpointError, KeyError, OSError):  # no adapter, or a broken one
            continue
    return found

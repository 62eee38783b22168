"""A bundle with adapters: one base network, and for each organ a small file that says what else it can be.

model = voxelry.load("runs/base/bundle", adapter="runs/liver/adapter")
model.adapters.load("runs/spleen/adapter")   # now the active one
model.adapters.switch("liver")               # None for the base alone
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from voxelry.bundle.seen import lineage
from voxelry.bundle.template import read_template
from voxelry.core.errors import CheckpointError, SettingError
from voxelry.data.prepare.template import Template
from voxelry.data.preprocess import Preprocess
from voxelry.models.adapters.adapters import Adapters
from voxelry.models.adapters.file import read_adapter

if TYPE_CHECKING:
    from voxelry.bundle.model import Model

__all__ = ["ModelAdapters"]


class ModelAdapters:
    """The adapters of a model; with the active one go its organs, their frames, preprocessing, template
    and the cases it has seen, which are the base's, too.

    Args:
        model: of a task that adapters can be trained for; its task, preprocessing and template are changed in place.

    Raises:
        SettingError: a model of another task.
    """

    def __init__(self, model: Model):
        if not hasattr(model.task, "adapt"):
            wanted = "reconstruct or reconstruct_flow"
            raise SettingError(f"adapter: expected with a model of the task {wanted}, got one of {model.task_name}")
        self._model = model
        self._adapters = Adapters(model.task.network)
        own = model.bundle
        self._known: dict[str | None, tuple[Any, Preprocess, Template | None, dict[str, Any]]] = {
            None: (model.task, own.preprocess, own.template, own.config.get("data") or {})
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All that were loaded."""
        return self._adapters.names

    @property
    def active(self) -> str | None:
        """The one that answers; None for the base alone."""
        return self._adapters.active

    def load(self, folder: str | PathLike[str], name: str | None = None) -> str:
        """Read an adapter that a training wrote, `output_dir/adapter`, and make it the active one.

        Args:
            folder: the adapter's.
            name: what it shall be called; None for its own name.

        Returns:
            The name.

        Raises:
            CheckpointError: of another base or task, changed since it was written, or not an adapter.
            SettingError: a name that is taken.
        """
        folder = Path(folder)
        folder = folder if (folder / "adapter.yaml").is_file() else folder / "adapter"
        record, _ = read_adapter(folder)
        settings = dict(record.get("task") or {})
        if settings.pop("name", None) != self._model.task_name:
            raise CheckpointError(f"{folder}: says nothing of {self._model.task_name}; expected what a training wrote")
        before = self.active
        found = self._adapters.load(folder, name)
        base: Any = self._known[None][0]
        self._model.task.to(self._model.device)  # what is new of the network lies on the CPU
        try:
            task = type(base)(base.network, **settings)
            if "calibration" in record:
                known = {key: torch.tensor(value) for key, value in record["calibration"].items()}
                task.calibration.load_state_dict(known)
            preprocess = Preprocess(**record["preprocess"])
            template = read_template(folder, record)
            data = record.get("data") or {"earlier": lineage({"data": self._known[None][3]})}
            self._known[found] = task.to(self._model.device).eval(), preprocess, template, data
        except (AttributeError, CheckpointError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self._adapters.remove(found)
            self._adapters.switch(before)
            told = str(error) if isinstance(error, CheckpointError) else f"{folder}: {error}"
            raise CheckpointError(told) from error
        self.switch(found)
        return found

    def switch(self, name: str | None) -> None:
        """Make an adapter the active one; None for the base alone.

        Raises:
            SettingError: there is no such adapter.
        """
        self._adapters.switch(name)
        bundle = self._model.bundle
        self._model.task, bundle.preprocess, bundle.template, data = self._known[name]
        bundle.config = {**bundle.config, "data": data}
        self._model.task.eval()

    @contextmanager
    def using(self, name: str | None) -> Iterator[Model]:
        """Another adapter, or the base alone, for the length of a block."""
        before = self.active
        self.switch(name)
        try:
            yield self._model
        finally:
            self.switch(before)

    def merge(self) -> None:
        """Put the active adapter into the weights: the same answers, without its cost; see `Adapters.merge`."""
        self._adapters.merge()

    def unmerge(self) -> None:
        """Undo `merge`; the base's weights come back bit by bit."""
        self._adapters.unmerge()

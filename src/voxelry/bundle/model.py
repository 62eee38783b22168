"""A trained model in a user's hands, and with it the adapters of its network: small files, each for another organ.

model = voxelry.load("runs/base/bundle", adapter="runs/liver/adapter")
model.adapters.load("runs/spleen/adapter")   # now the active one
model.adapters.switch("liver")               # None for the base alone
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Self

import numpy as np
import torch

from voxelry.bundle.bundle import Bundle, TaskT, describe, read_bundle
from voxelry.bundle.registry import TASKS, recipe_named
from voxelry.bundle.seen import lineage
from voxelry.bundle.template import read_template
from voxelry.core.errors import CheckpointError, DataError, SettingError
from voxelry.core.fetch import fetch
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.hdf5 import image_options
from voxelry.data.prepare.template import Template
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.modality import is_despeckled, own_values
from voxelry.data.sample import Sample
from voxelry.io import open_image
from voxelry.models.adapters.adapters import Adapters
from voxelry.models.adapters.file import read_adapter
from voxelry.models.networks import image_rank

__all__ = ["Model", "ModelAdapters", "Readable", "load"]

Readable = str | PathLike[str] | np.ndarray | Sample | Mapping[str, Any]


class Model(Generic[TaskT]):
    """A bundle that answers for files and arrays.

    Args:
        bundle: what `read_bundle` gave.
        device: where the network runs; None takes a GPU when there is one.
    """

    def __init__(self, bundle: Bundle[TaskT], device: str | torch.device | None = None):
        self.bundle = bundle
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.task: TaskT = bundle.task.to(self.device).eval()

    @property
    def task_name(self) -> str:
        """The task's name, such as `landmarks`."""
        return str(self.bundle.config["task"]["name"])

    @property
    def recipe(self) -> Any:
        """What the program knows of the task, a `tasks.recipe.Recipe`."""
        return recipe_named(self.task_name)

    @cached_property
    def adapters(self) -> ModelAdapters[TaskT]:
        """Adapters of this model's network, to load and to switch between; see `ModelAdapters`.

        Raises:
            SettingError: a task that has none.
        """
        return ModelAdapters(self)

    def to(self, device: str | torch.device) -> Self:
        """The same model on another device.

        Raises:
            SettingError: it has adapters, which have to be loaded there.
        """
        if "adapters" in vars(self):
            raise SettingError("device: expected before the adapters; load the bundle there, then its adapters")
        return type(self)(self.bundle, device)

    def predict(self, image: Readable, space: Space | None = None, **options: Any) -> Any:
        """What the task makes of one image.

        Args:
            image: a file in any format that is read, an array `(C, *spatial)` or `(*spatial)`, a sample, or, for a
                model that takes several contrasts, a mapping from their names to files.
            space: where an array lies; without it, 1 mm voxels.
            options: for the file's reader, such as `dataset` or `spacing`; and those of the task, such as `steps` and
                `samples` of a translation (`Recipe.options`).

        Returns:
            The task's own record; for landmarks a `LandmarkPrediction` with points in world mm.

        Raises:
            FileError: the file can't be read.
            DataError: the image's rank or channels aren't the network's.
        """
        return self.recipe.predict(self, image, space, options)

    def sample(self, image: Readable, space: Space | None = None, **options: Any) -> Sample:
        """The image as a sample, not yet preprocessed; arguments and errors as `predict`.

        Of a translation from coarse images to fine ones it is as fine as the answer (`data.target_grid`).
        """
        ndim = image_rank(self.task.network)
        if isinstance(image, Sample):
            sample = image
        elif isinstance(image, Mapping):
            sample = self.recipe.read_contrasts(self.task, image, options)
        elif isinstance(image, np.ndarray):
            array = image[None] if image.ndim == ndim else image
            where = space or Space.from_spacing(array.shape[1:])
            sample = Sample(torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32)), where, "array", "array")
        else:
            path = as_path(image)
            read = open_image(path, **self.reading(path, options))
            pixels = torch.as_tensor(np.ascontiguousarray(own_values(read), dtype=np.float32))
            sample = Sample(pixels, read.space, case_name(path), str(path), despeckled=is_despeckled(read))
        self.check_image(sample.source, sample.ndim, int(sample.image.shape[0]))
        return sample if isinstance(image, Sample) else self.recipe.on_target_grid(self.task, sample)

    def reading(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options for a file's reader: those given and, for an HDF5 file of several images, which of them is meant.

        Unless `dataset` is given it is the one called as in the training, `raw` by default.
        """
        trained = (self.bundle.config.get("training") or {}).get("data") or {}
        return image_options(path, (trained.get("options") or {}).get("dataset")) | dict(options)

    def check_image(self, source: str, ndim: int, channels: int) -> None:
        """Refuse an image that the network doesn't take.

        Raises:
            DataError: another rank or number of channels.
        """
        own, taken = image_rank(self.task.network), self.recipe.image_channels(self.task)
        if ndim != own:
            raise DataError(f"{source}: an image of rank {ndim}, but the model is of rank {own}")
        if not self.bundle.preprocess.takes(channels, taken):
            hint = " (choose one by its number from 0: --channel, channel=)" if taken == 1 else ""
            raise DataError(f"{source}: {channels} channels, but the model takes {taken}{hint}")

    def reconstruct(self, image: str | PathLike[str] | np.ndarray | Sample, **prompt: Any) -> Any:
        """What is clicked on, of a model that starts from clicks; see `tasks.reconstruct.prompt.reconstruct`.

        Raises:
            SettingError: a model of another task.
        """
        if self.recipe.needed != "click":
            wanted = " or ".join(name for name in TASKS if recipe_named(name).needed == "click")
            raise SettingError(f"task: expected a model of the task {wanted}, got one of {self.task_name}")
        return self.predict(image, **prompt)

    def digest(self) -> str:
        """What tells these weights and settings, as they are used now, from others."""
        adapter = self.adapters.active if "adapters" in vars(self) else None
        facts = [self.bundle.config, describe(self.task), self.bundle.preprocess.settings(), adapter]
        found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, value in self.task.state_dict().items():
            found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


class ModelAdapters(Generic[TaskT]):
    """The adapters of a model; with the active one go its organs, their frames, preprocessing, template
    and the cases it has seen, which are the base's, too.

    Args:
        model: of a task that adapters can be trained for; its task, preprocessing and template are changed in place.

    Raises:
        SettingError: a model of another task.
    """

    def __init__(self, model: Model[TaskT]):
        if not model.recipe.adaptable:
            wanted = " or ".join(name for name in TASKS if recipe_named(name).adaptable)
            raise SettingError(f"adapter: expected with a model of the task {wanted}, got one of {model.task_name}")
        self._model = model
        self._adapters = Adapters(model.task.network)
        self._folders: dict[str, Path] = {}
        own = model.bundle
        self._known: dict[str | None, tuple[TaskT, Preprocess, Template | None, dict[str, Any]]] = {
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

    @property
    def folders(self) -> dict[str, Path]:
        """Where each was read from, by its name."""
        return dict(self._folders)

    @property
    def base(self) -> str:
        """The hash of the base, which each adapter's record has as `base_sha256`."""
        return self._adapters.base

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
        folder = as_path(folder)
        folder = fetch(folder if (folder / "adapter.yaml").is_file() else folder / "adapter")
        record, _ = read_adapter(folder)
        settings = dict(record.get("task") or {})
        if settings.pop("name", None) != self._model.task_name:
            raise CheckpointError(f"{folder}: says nothing of {self._model.task_name}; expected what a training wrote")
        before = self.active
        found = self._adapters.load(folder, name)
        base = self._known[None][0]
        self._model.task.to(self._model.device)  # what is new of the network lies on the CPU
        try:
            task = type(base)(base.network, **settings)
            if "calibration" in record:
                known = {key: torch.tensor(value) for key, value in record["calibration"].items()}
                task.get_submodule("calibration").load_state_dict(known)
            preprocess = Preprocess(**record["preprocess"])
            template = read_template(folder, record)
            data = record.get("data") or {"earlier": lineage({"data": self._known[None][3]})}
            self._known[found] = task.to(self._model.device).eval(), preprocess, template, data
        except (AttributeError, CheckpointError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self._adapters.remove(found)
            self._adapters.switch(before)
            told = str(error) if isinstance(error, CheckpointError) else f"{folder}: {error}"
            raise CheckpointError(told) from error
        self._folders[found] = folder
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
    def using(self, name: str | None) -> Iterator[Model[TaskT]]:
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


def load(
    path: str | PathLike[str],
    device: str | torch.device | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    adapter: str | PathLike[str] | None = None,
) -> Model[Any]:
    """Load a bundle, ready to predict.

    Args:
        path: the bundle's folder, or that of the run that made it, here or elsewhere (`s3://bucket/runs/segment`).
        device: where the network runs; None takes a GPU when there is one.
        changes: settings of use to take other values, such as `{"task.tile_size": 192}`, see `read_bundle`.
        adapter: an adapter of this bundle, or the folder of the run that trained it, see `Model.adapters`.

    Raises:
        CheckpointError, ConfigError: the bundle is broken, was changed, or is of a newer kind, or the adapter is of
            another.
        SettingError: a change that can't be made, or an adapter of a task that has none.
    """
    model = Model(read_bundle(path, changes), device)
    if adapter is not None:
        model.adapters.load(adapter)
    return model

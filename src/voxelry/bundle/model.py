"""A trained model in a user's hands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from voxelry.bundle.bundle import Bundle, read_bundle
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.layouts.find import case_name, image_options
from voxelry.data.prepare.modality import is_despeckled, own_values
from voxelry.data.sample import Sample
from voxelry.engine.kinds import KINDS, Kind
from voxelry.io import open_image

if TYPE_CHECKING:
    from voxelry.bundle.adapted import ModelAdapters

__all__ = ["Model", "load"]

Readable = str | PathLike[str] | np.ndarray | Sample | Mapping[str, Any]


class Model:
    """A bundle that answers for files and arrays.

    Args:
        bundle: what `read_bundle` gave.
        device: where the network runs; None takes a GPU when there is one.
    """

    def __init__(self, bundle: Bundle, device: str | torch.device | None = None):
        self.bundle = bundle
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.task = bundle.task.to(self.device).eval()

    @property
    def task_name(self) -> str:
        """The task's name, such as `landmarks`."""
        return str(self.bundle.config["task"]["name"])

    @property
    def kind(self) -> Kind:
        """What the engine knows of the task."""
        return KINDS[self.task_name]

    @cached_property
    def adapters(self) -> ModelAdapters:
        """Adapters of this model's network, to load and to switch between; see `bundle.adapted`.

        Raises:
            SettingError: a task that has none.
        """
        from voxelry.bundle.adapted import ModelAdapters

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
                `samples` of a translation (`Kind.options`).

        Returns:
            The task's own record; for landmarks a `LandmarkPrediction` with points in world mm.

        Raises:
            FileError: the file can't be read.
            DataError: the image's rank or channels aren't the network's.
        """
        own = {name: options.pop(name) for name in self.kind.options if name in options}
        sample = self.bundle.preprocess(self.sample(image, space, **options))
        batch = collate([sample]).to(self.device)
        task: Any = self.task
        with torch.inference_mode():
            return task.predict(batch, **own)[0]

    def sample(self, image: Readable, space: Space | None = None, **options: Any) -> Sample:
        """The image as a sample, not yet preprocessed; arguments and errors as `predict`.

        Of a translation from coarse images to fine ones it is as fine as the answer (`data.target_grid`).
        """
        ndim = int(self.task.network.ndim)  # type: ignore[arg-type]
        if isinstance(image, Sample):
            sample = image
        elif isinstance(image, Mapping):
            sample = self.kind.read_contrasts(self.task, image, options)
        elif isinstance(image, np.ndarray):
            array = image[None] if image.ndim == ndim else image
            where = space or Space.from_spacing(array.shape[1:])
            sample = Sample(torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32)), where, "array", "array")
        else:
            path = Path(image)
            read = open_image(path, **self.reading(path, options))
            pixels = torch.as_tensor(np.ascontiguousarray(own_values(read), dtype=np.float32))
            sample = Sample(pixels, read.space, case_name(path), str(path), despeckled=is_despeckled(read))
        self.check_image(sample.source, sample.ndim, int(sample.image.shape[0]))
        return sample if isinstance(image, Sample) else self.kind.on_target_grid(self.task, sample)

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
        own, taken = int(self.task.network.ndim), self.kind.image_channels(self.task)  # type: ignore[arg-type]
        if ndim != own:
            raise DataError(f"{source}: an image of rank {ndim}, but the model is of rank {own}")
        if not self.bundle.preprocess.takes(channels, taken):
            hint = " (choose one by its number from 0: --channel, channel=)" if taken == 1 else ""
            raise DataError(f"{source}: {channels} channels, but the model takes {taken}{hint}")

    def reconstruct(self, image: str | PathLike[str] | np.ndarray | Sample, **prompt: Any) -> Any:
        """The organ that is clicked on, for a model of that task; see `tasks.reconstruct.prompt.reconstruct`.

        Raises:
            SettingError: a model of another task.
        """
        from voxelry.tasks.reconstruct.prompt import reconstruct

        if not self.kind.prompted:
            raise SettingError(f"task: expected a model of the task reconstruct, got one of {self.task_name}")
        return reconstruct(self, image, **prompt)

    def digest(self) -> str:
        """What tells these weights and settings from others."""
        found = hashlib.sha256(json.dumps(self.bundle.config, sort_keys=True, default=str).encode())
        for name, value in self.task.state_dict().items():
            found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def load(
    path: str | PathLike[str],
    device: str | torch.device | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    adapter: str | PathLike[str] | None = None,
) -> Model:
    """Load a bundle, ready to predict.

    Args:
        path: the bundle's folder, or that of the run that made it.
        device: where the network runs; None takes a GPU when there is one.
        changes: settings of use to take other values, such as `{"task.tile_size": 192}`, see `read_bundle`.
        adapter: an adapter of this bundle, or the folder of the run that trained it, see `Model.adapters`.

    Raises:
        CheckpointError, ConfigError: the bundle is broken, was changed, or is of a newer kind, or the adapter is of
            another.
        SettingError: a change that can't be made, or an adapter of a task that has none.
    """
    model = Model(read_bundle(Path(path), changes), device)
    if adapter is not None:
        model.adapters.load(adapter)
    return model

"""A trained model in a user's hands."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.io import read_image
from voxelry.data.sample import Sample, collate
from voxelry.engine.bundle import Bundle, read_bundle

__all__ = ["Model", "load"]


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

    def to(self, device: str | torch.device) -> Self:
        """The same model on another device."""
        return type(self)(self.bundle, device)

    def predict(
        self, image: str | PathLike[str] | np.ndarray | Sample, space: Space | None = None, **options: Any
    ) -> Any:
        """What the task makes of one image.

        Args:
            image: a file in any format that is read, an array `(C, *spatial)` or `(*spatial)`, or a sample.
            space: where an array lies; without it, 1 mm voxels.
            options: for the file's reader, such as `dataset` or `spacing`.

        Returns:
            The task's own record; for landmarks a `LandmarkPrediction` with points in world mm.

        Raises:
            FileError: the file can't be read.
            DataError: the image's rank or channels aren't the network's.
        """
        sample = self.bundle.preprocess(self.sample(image, space, **options))
        batch = collate([sample]).to(self.device)
        with torch.inference_mode():
            return self.task.predict(batch)[0]

    def sample(
        self, image: str | PathLike[str] | np.ndarray | Sample, space: Space | None = None, **options: Any
    ) -> Sample:
        """The image as a sample, not yet preprocessed; arguments and errors as `predict`."""
        settings = self.bundle.config["network"]
        ndim = int(settings["ndim"])
        if isinstance(image, Sample):
            sample = image
        elif isinstance(image, np.ndarray):
            array = image[None] if image.ndim == ndim else image
            where = space or Space.from_spacing(array.shape[1:])
            sample = Sample(torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32)), where, "array", "array")
        else:
            path = Path(image)
            read = read_image(path, **options)
            pixels = torch.as_tensor(np.ascontiguousarray(read.array, dtype=np.float32))
            sample = Sample(pixels, read.space, _stem(path), str(path))
        if sample.ndim != ndim:
            raise DataError(f"{sample.source}: an image of rank {sample.ndim}, but the model is of rank {ndim}")
        channels = int(settings.get("in_channels", 1))
        if sample.image.shape[0] != channels:
            raise DataError(f"{sample.source}: {sample.image.shape[0]} channels, but the model takes {channels}")
        return sample


def load(path: str | PathLike[str], device: str | torch.device | None = None) -> Model:
    """Load a bundle, ready to predict.

    Raises:
        CheckpointError, ConfigError: the bundle is broken, was changed, or is of a newer kind.
    """
    return Model(read_bundle(Path(path)), device)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".nii.gz", ".ome.tif", ".ome.tiff", ".ome.zarr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem

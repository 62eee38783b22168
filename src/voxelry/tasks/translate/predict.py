"""What a translation has to show, and how it is written: in physical values, on the input's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.preprocess import move
from voxelry.data.preprocess.normalise import physical
from voxelry.data.sample import Sample
from voxelry.io import write_image

__all__ = ["TranslatePrediction", "write_translation"]


@dataclass(frozen=True)
class TranslatePrediction:
    """An image translated. All tensors on the CPU, values relative to their `levels`.

    Attributes:
        name: of the case.
        image: the conditions, `(C, *spatial)`.
        translated: `(C_t, *spatial)`, the mean where there are several samples.
        levels: `(C + C_t, 2)` physical values of 0 and 1, of the conditions' channels and then the target's.
        space: the grid of all of them.
        spread: standard deviation of samples, calibrated if the task is, `(C_t, *spatial)`; None without any.
        target: the truth, `(C_t, *spatial)`; None where it isn't known.
        baseline: what the regression baseline makes of the image, `(C_t, *spatial)`; None without one.
        source: the file the image came from.
        calls: how often the network was called for `translated`.
        seconds: what that took.
        samples: how many are behind `translated`.
    """

    name: str
    image: Tensor
    translated: Tensor
    levels: Tensor
    space: Space
    spread: Tensor | None = None
    target: Tensor | None = None
    baseline: Tensor | None = None
    source: str = ""
    calls: int = 1
    seconds: float = 0.0
    samples: int = 1

    @property
    def target_levels(self) -> Tensor:
        """The target's part of `levels`, `(C_t, 2)`."""
        return self.levels[len(self.image) :]

    def physical(self) -> Tensor:
        """The translation in physical values, `(C_t, *spatial)`."""
        return physical(self.translated, self.target_levels)

    def physical_spread(self) -> Tensor | None:
        """The spread in physical values, `(C_t, *spatial)`."""
        levels = self.target_levels
        width = torch.stack([torch.zeros(len(levels)), levels[:, 1] - levels[:, 0]], dim=1)
        return None if self.spread is None else physical(self.spread, width)


def write_translation(
    prediction: TranslatePrediction, folder: Path, *, suffix: str = ".nii.gz", space: Space | None = None
) -> list[Path]:
    """Write `NAME.suffix` and, where there is a spread, `NAME_spread.suffix`.

    Args:
        prediction: of one case.
        folder: made when missing.
        suffix: of a format that `io.write_image` writes.
        space: the grid to write on, the input's; values are interpolated linearly where it isn't the prediction's.

    Raises:
        FileError: the folder can't be written.
    """
    written = []
    for ending, values in (("", prediction.physical()), ("_spread", prediction.physical_spread())):
        if values is None:
            continue
        sample = Sample(values.float(), prediction.space, prediction.name, prediction.source)
        if space is not None:
            sample = move(sample, space)
        path = folder / f"{prediction.name}{ending}{suffix}"
        array = sample.image.numpy()
        written.append(write_image(path, _pixels(array, prediction, path) if suffix == ".png" else array, sample.space))
    return written


def _pixels(values: NDArray[np.float32], prediction: TranslatePrediction, path: Path) -> NDArray[np.integer]:
    """Whole numbers for a PNG, of as many bits as the target's levels need.

    Raises:
        FileError: levels that whole numbers from 0 can't hold.
    """
    low, high = float(prediction.target_levels.min()), float(prediction.target_levels.max())
    if low < 0 or not 1 < high <= 65535:
        raise FileError(
            path, f"PNG holds whole numbers from 0 to 65535, the values go from {low:g} to {high:g}", "use --format npy"
        )
    kind = np.uint8 if high <= 255 else np.uint16
    return np.clip(np.round(values), 0, np.iinfo(kind).max).astype(kind)

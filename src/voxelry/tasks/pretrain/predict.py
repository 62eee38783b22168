"""What pretraining has to show: reconstructions of held-out images, and new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.io import write_image

__all__ = ["PretrainPrediction", "write_reconstruction", "write_samples"]


@dataclass(frozen=True)
class PretrainPrediction:
    """A held-out image noised, and denoised again by the network. All tensors on the CPU.

    Attributes:
        name: of the case.
        image: as it arrived, `(C, *spatial)`.
        noised: at the time step `t_start`, `(C, *spatial)`, in the data's range of values.
        reconstruction: sampled from `noised`, `(C, *spatial)`, in the data's range of values.
        t_start: the time step the reconstruction began at.
        losses: the network's loss on this image in each time-step band, under noise that never changes.
        space: the grid of all three images.
        source: the file the image came from.
    """

    name: str
    image: Tensor
    noised: Tensor
    reconstruction: Tensor
    t_start: int
    losses: tuple[float, ...]
    space: Space
    source: str = ""


def write_reconstruction(prediction: PretrainPrediction, folder: Path, *, suffix: str = ".nii.gz") -> list[Path]:
    """Write the noised and the reconstructed image over their input: `NAME_noised`, `NAME_reconstruction`.

    Args:
        prediction: of one case.
        folder: made when missing.
        suffix: of the format, such as `.nii.gz`, `.mha` or `.npy`.

    Raises:
        FileError: the folder can't be written, or the format is unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {"noised": prediction.noised, "reconstruction": prediction.reconstruction}
    return [
        write_image(folder / f"{prediction.name}_{what}{suffix}", image.numpy(), prediction.space)
        for what, image in pairs.items()
    ]


def write_samples(
    samples: Tensor, folder: Path, space: Space | Sequence[Space], *, suffix: str = ".nii.gz"
) -> list[Path]:
    """Write new images as `sample_000`, `sample_001` and so on.

    Args:
        samples: `(N, C, *spatial)`.
        folder: made when missing.
        space: where they lie: that of the data they were learned from, one for all or one for each.
        suffix: of the format.

    Raises:
        SettingError: a space of another shape than the samples, or not one for each.
        FileError: the folder can't be written, or the format is unknown.
    """
    spaces = [space] * len(samples) if isinstance(space, Space) else list(space)
    if len(spaces) != len(samples):
        raise SettingError(f"space: expected one or {len(samples)}, one for each sample, got {len(spaces)}")
    for grid in spaces:
        if grid.shape != tuple(samples.shape[2:]):
            raise SettingError(f"space: expected the samples' shape {tuple(samples.shape[2:])}, got {grid.shape}")
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(3, len(str(len(samples) - 1)))
    return [
        write_image(folder / f"sample_{index:0{digits}d}{suffix}", np.asarray(image.cpu()), grid)
        for index, (image, grid) in enumerate(zip(samples, spaces, strict=True))
    ]

"""What pretraining has to show of a held-out image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from voxelry.core.space import Space
from voxelry.io import write_image

__all__ = ["PretrainPrediction", "write_images"]


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


def write_images(name: str, images: Mapping[str, Tensor], folder: Path, space: Space, format: str) -> list[Path]:
    """Write images over their input: `NAME_WHAT`, such as `scan_noised.nii.gz`.

    Args:
        name: of the case.
        images: what each is, and `(C, *spatial)`.
        folder: made when missing.
        space: the grid of all.
        format: suffix without its dot, such as `nii.gz`, `mha` or `npy`.

    Raises:
        FileError: the folder can't be written, or the format is unknown.
    """
    return [write_image(folder / f"{name}_{what}.{format}", image.numpy(), space) for what, image in images.items()]

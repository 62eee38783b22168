"""The common frame of a prepared folder and of the models trained in it: an image, and how scans come there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.space import Space
from voxelry.data.prepare.register import register
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.modality import own_values
from voxelry.data.sample import Sample
from voxelry.io import open_image, write_image

__all__ = ["TEMPLATE", "Template"]

TEMPLATE = "template.nii.gz"
"""What the image is called in a prepared folder, a bundle and an adapter."""


@dataclass(frozen=True)
class Template:
    """An image whose world is the common frame.

    Attributes:
        image: of rank 3 and one channel, in the values of its scanner.
        transform: how scans are brought there, `rigid` or `affine`.
        spacing: mm of the isotropic grid that they lie on then.
    """

    image: Sample
    transform: str
    spacing: float

    @classmethod
    def read(cls, path: Path, transform: str, spacing: float) -> Self:
        """The first channel of a file.

        Raises:
            FileError: it can't be read as a volume.
        """
        file = open_image(path, ndim=3)
        pixels = torch.from_numpy(own_values(file)[:1].astype(np.float32))
        return cls(Sample(pixels, file.space, path.name, str(path)), transform, spacing)

    def write(self, path: Path) -> Path:
        """Write the image as NIfTI, float32."""
        return write_image(path, self.image.image.numpy(), self.image.space)

    @property
    def grid(self) -> Space:
        """What scans are resampled to: over the image, canonical, with `spacing`."""
        return Preprocess(spacing=self.spacing, normalise=None).target(self.image.space)

    @property
    def digest(self) -> str:
        """What tells the frame from others: SHA-256 of the pixels, the grid (as NIfTI keeps it) and the transform."""
        space = self.image.space
        found = hashlib.sha256(f"{self.transform} {space.shape}".encode())
        found.update(space.affine.astype(np.float32).tobytes())
        found.update(np.ascontiguousarray(self.image.image.numpy()).tobytes())
        return found.hexdigest()

    def motion(self, scan: Sample) -> NDArray[np.float64]:
        """`(4, 4)` from a scan's world to the template's, see `register`; by the scan's first channel.

        Raises:
            DataError: they can't be brought together.
        """
        return register(Sample(scan.image[:1], scan.space, scan.name, scan.source), self.image, self.transform)

"""Intensities as the modality wants them: windowed CT, z-scored MRI, despeckled ultrasound."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.core.errors import SettingError
from voxelry.core.remote import as_path
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.normalise import finite
from voxelry.io import Image, ImageFile, open_image

__all__ = [
    "AIR",
    "CT_WINDOWS",
    "MODALITIES",
    "Standard",
    "ct_window",
    "guess_modality",
    "is_despeckled",
    "own_image",
    "own_values",
    "preprocess_like",
    "standardise",
    "to_unit",
]

MODALITIES = ("ct", "mr", "us")
AIR = -500.0  # Hounsfield units, below which there is air; images of other modalities hold no such values

# Hounsfield units, low and high: level minus and plus half the width of the usual reading windows.
CT_WINDOWS = {
    "default": (-1000.0, 2000.0),
    "abdomen": (-160.0, 240.0),
    "angiography": (0.0, 600.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
}

_NOTE = "voxelry prepare: "
_NUMBER = r"(-?[0-9.]+(?:e[-+]?[0-9]+)?)"
_NOTE_FIELDS = re.compile(f"{_NOTE}(ct|mr|us) shift={_NUMBER} scale={_NUMBER}")

_REACH = 3.0  # standard deviations that become 0 and 1 where a network wants [0, 1]


@dataclass(frozen=True)
class Standard:
    """What became of the values: `(value - shift) / scale`, those of a CT clipped to [0, 1].

    Attributes:
        modality: `ct`, `mr` or `us`.
        shift, scale: in the file's values; of ultrasound, after the speckle was removed.
    """

    modality: str
    shift: float
    scale: float

    def restore(self, image: Tensor) -> Tensor:
        """Back to the file's values, where they weren't clipped."""
        return image * self.scale + self.shift

    @property
    def note(self) -> str:
        """What the header of a volume that was written says of it; `of_note` reads it."""
        return f"{_NOTE}{self.modality} shift={self.shift:.9g} scale={self.scale:.9g}"

    @classmethod
    def of_note(cls, metadata: Mapping[str, Any]) -> Self | None:
        """What a file's header says was done, by `ImageFile.metadata`; None where it is no volume of `prepare`."""
        found = _NOTE_FIELDS.fullmatch(str(metadata.get("description", "")))
        return None if found is None else cls(found[1], float(found[2]), float(found[3]))


def own_values(file: ImageFile, window: Sequence[slice] | None = None) -> NDArray[Any]:
    """Pixels of a file `(C, *window)` in the values of its scanner.

    A volume that `prepare` wrote is brought back from the scale of its modality, which its header tells, so that a
    window in Hounsfield units, or any other scaling, is never applied to what is already scaled.

    Raises:
        FileError: as `ImageFile.read`.
    """
    standard = Standard.of_note(file.metadata)
    pixels = file.read(window)
    return pixels if standard is None else standard.restore(torch.from_numpy(pixels.astype(np.float32))).numpy()


def own_image(path: Path, **settings: Any) -> Image:
    """A whole image in the values of its scanner, see `own_values`; keywords are those of `open_image`.

    Raises:
        FileError: as `open_image` and `ImageFile.read`.
    """
    file = open_image(path, **settings)
    return Image(own_values(file), file.space, as_path(path), despeckled=is_despeckled(file))


def is_despeckled(file: ImageFile) -> bool:
    """Whether a file is an ultrasound volume that `prepare` wrote."""
    standard = Standard.of_note(file.metadata)
    return standard is not None and standard.modality == "us"


def ct_window(window: str | Sequence[float]) -> tuple[float, float]:
    """Low and high end in Hounsfield units, of a name in `CT_WINDOWS` or of two numbers.

    Raises:
        SettingError: an unknown name, or numbers in the wrong order.
    """
    if isinstance(window, str):
        if window not in CT_WINDOWS:
            raise SettingError(f"window: expected two numbers or one of {', '.join(CT_WINDOWS)}, got {window!r}")
        return CT_WINDOWS[window]
    ends = [float(value) for value in window]
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise SettingError(f"window: expected low and high in Hounsfield units, got {list(window)}")
    return ends[0], ends[1]


def guess_modality(image: Tensor, stated: str = "") -> str:
    """`stated` where it is a modality (also DICOM's `MR`); else CT where values go below -500, and MRI."""
    name = {"mri": "mr"}.get(stated.lower(), stated.lower())
    if name in MODALITIES:
        return name
    return "ct" if float(image.min()) < AIR else "mr"


def standardise(image: Tensor, modality: str, *, window: str | Sequence[float] = "default") -> tuple[Tensor, Standard]:
    """Intensities `(C, *spatial)` of one volume on the scale of its modality.

    CT: the window becomes [0, 1], values beyond are clipped. MRI: mean 0 and standard deviation 1 over the
    volume. Ultrasound: its 1st and 99th percentile become 0 and 1, values beyond are clipped; `despeckle` it first.

    Returns:
        float32 of the same shape, and what was done. A volume without contrast becomes zeros.

    Raises:
        SettingError: an unknown modality or window.
    """
    image = finite(image.to(torch.float32))
    if modality == "ct":
        low, high = ct_window(window)
        return ((image - low) / (high - low)).clamp(0, 1), Standard("ct", low, high - low)
    if modality == "us":
        low, high = (float(value) for value in np.percentile(image.numpy(), (1.0, 99.0)))
        span = high - low if high > low else 1.0
        return ((image - low) / span).clamp(0, 1), Standard("us", low, span)
    if modality != "mr":
        raise unknown_choice("modality", modality, MODALITIES)
    deviation, mean = (float(value) for value in torch.std_mean(image.to(torch.float64), correction=0))
    scale = deviation if deviation > 1e-7 * abs(mean) else 1.0
    return ((image.to(torch.float64) - mean) / scale).to(torch.float32), Standard("mr", mean, scale)


def to_unit(image: Tensor, modality: str) -> Tensor:
    """Standardised intensities in [0, 1], as `preprocess_like` makes them of the file's own values."""
    return (image / (2 * _REACH) + 0.5).clamp(0, 1) if modality == "mr" else image.clamp(0, 1)


def preprocess_like(modality: str, spacing: float | None, *, window: str | Sequence[float] = "default") -> Preprocess:
    """The preprocessing that makes of a raw volume what `prepare` and `to_unit` made of the training data.

    Raises:
        SettingError: an unknown modality or window.
    """
    check_choice("modality", modality, MODALITIES)
    settings = {
        "ct": {"normalise": "window", "window": ct_window(window)},
        "mr": {"normalise": "zscore", "clip": _REACH},
        "us": {"normalise": "percentile", "percentiles": (1.0, 99.0), "despeckle": True},
    }[modality]
    return Preprocess(spacing=spacing, **settings)  # type: ignore[arg-type]

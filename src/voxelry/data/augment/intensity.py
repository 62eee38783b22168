"""Random changes of the values of an image, each with its own chance.

The frequent ones are plain PyTorch; what a scanner does to an image comes from TorchIO (Pérez-García et al.
2021, doi:10.1016/j.cmpb.2021.106236), which is imported when one of those is asked for. Amplitudes are
relative to the value range, so they mean the same for images in [0, 1] and for z-scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.data.sample import Sample
from voxelry.ops.resample import spline_grid

__all__ = ["IntensityAugment"]


@dataclass(frozen=True, kw_only=True)
class IntensityAugment:
    """Change contrast, brightness and noise, and add artefacts; only the image changes.

    A sample with a target stays as it is: what the image is to become depends on how the image looks. With
    `paired` both get the same new tones, and no noise or artefacts.

    Args:
        intensity_probability: chance of each of the changes below whose amplitude isn't 0.
        gamma: largest |log| of the exponent; 0.3 for exponents from 0.74 to 1.35.
        contrast: largest relative change of the distance from the channel's mean.
        brightness: largest change of all values.
        bias_field: largest |log| of a smooth factor, one cubic per axis over the whole image.
        noise: largest standard deviation of Gaussian noise.
        blur: largest standard deviation in mm of a Gaussian blur, per axis alike (TorchIO).
        ghosting: largest strength of ghosts along one axis (TorchIO).
        spike: largest strength of stripes from one bright point in k-space (TorchIO).
        value_range: lowest and highest value of images; results are clamped to it. None takes each
            sample's own.
        paired: whether image and target change their tones together, by the same gamma, contrast, brightness and
            bias field.

    Raises:
        SettingError: a value out of range.
    """

    intensity_probability: float = 0.5
    gamma: float = 0.3
    contrast: float = 0.2
    brightness: float = 0.1
    bias_field: float = 0.3
    noise: float = 0.05
    blur: float = 0.0
    ghosting: float = 0.0
    spike: float = 0.0
    value_range: Sequence[float] | None = (0.0, 1.0)
    paired: bool = False

    def __post_init__(self) -> None:
        for name in ("gamma", "contrast", "brightness", "bias_field", "noise", "blur", "ghosting", "spike"):
            amplitude = getattr(self, name)
            if isinstance(amplitude, bool) or not isinstance(amplitude, (int, float)) or not 0 <= amplitude < np.inf:
                raise SettingError(f"{name}: expected a number from 0, got {amplitude!r}")
        if self.contrast >= 1:
            raise SettingError(f"contrast: expected a number below 1, got {self.contrast!r}")
        if not 0 <= self.intensity_probability <= 1:
            raise SettingError(f"intensity_probability: expected 0 to 1, got {self.intensity_probability!r}")
        if self.value_range is not None and not (
            len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]
        ):
            raise SettingError(f"value_range: expected a low and a higher number, or none, got {self.value_range!r}")

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """A copy of `sample` with a changed image in the same value range; the sample itself where nothing changes."""
        if sample.target is not None and not self.paired:
            return sample
        chosen: list[Callable[..., Tensor]] = []
        amplitudes = []
        for change, amplitude in (
            (_bias_field, self.bias_field),
            (_gamma, self.gamma),
            (_contrast, self.contrast),
            (_brightness, self.brightness),
            (_blur, self.blur),
            (_ghosting, self.ghosting),
            (_spike, self.spike),
            (_noise, self.noise),
        ):
            wanted = generator.random() < self.intensity_probability
            if wanted and amplitude > 0 and (sample.target is None or change in _TONES):
                chosen.append(change)
                amplitudes.append(float(amplitude))
        image = sample.image if sample.target is None else torch.cat([sample.image, sample.target])
        low, high = self.value_range if self.value_range is not None else (float(image.min()), float(image.max()))
        if not chosen or high <= low:
            return sample
        image = (image - low).div_(high - low).clamp_(0, 1)
        for change, amplitude in zip(chosen, amplitudes, strict=True):
            image = change(image, amplitude, sample, generator)
        image = image.clamp_(0, 1).mul_(high - low).add_(low)
        image, target = image[: len(sample.image)], image[len(sample.image) :]
        if sample.present is not None:
            image[~sample.present] = 0.0
        return sample.replace(image=image, target=None if sample.target is None else target)


def _bias_field(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    coefficients = generator.uniform(-amplitude, amplitude, (1, *(4,) * sample.ndim))
    return image.mul_(spline_grid(torch.from_numpy(coefficients).to(image), image.shape[1:]).exp_())


def _gamma(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    return image.clamp_(0, 1).pow_(float(np.exp(generator.uniform(-amplitude, amplitude))))


def _contrast(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    factor = 1 + generator.uniform(-amplitude, amplitude)
    mean = image.flatten(1).mean(dim=1).reshape(-1, *[1] * sample.ndim)
    if sample.target is not None:  # one pivot, so that equal stays equal
        mean = mean.mean(dim=0, keepdim=True)
    return image.mul_(factor).add_(mean * (1 - factor))


def _brightness(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    return image.add_(generator.uniform(-amplitude, amplitude))


_TONES = (_bias_field, _gamma, _contrast, _brightness)


def _noise(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(generator.standard_normal(tuple(image.shape), dtype=np.float32))
    return image.add_(noise.to(image), alpha=generator.uniform(0, amplitude))


def _blur(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    deviation = generator.uniform(0, amplitude)
    voxels = [0.0] * (3 - sample.ndim) + [deviation / step for step in sample.space.spacing]
    return _with_torchio(image, "Blur", std=tuple(voxels))


def _ghosting(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    axis = 3 - sample.ndim + int(generator.integers(sample.ndim))
    ghosts, strength = int(generator.integers(2, 8)), generator.uniform(0, amplitude)
    return _with_torchio(image, "Ghosting", num_ghosts=ghosts, axis=axis, intensity=strength, restore=0.02)


def _spike(image: Tensor, amplitude: float, sample: Sample, generator: np.random.Generator) -> Tensor:
    place = np.zeros((1, 3))
    place[0, 3 - sample.ndim :] = generator.uniform(-0.5, 0.5, sample.ndim)
    return _with_torchio(image, "Spike", spikes_positions=place, intensity=generator.uniform(-amplitude, amplitude))


def _with_torchio(image: Tensor, transform: str, **settings: Any) -> Tensor:
    """A TorchIO transform with fixed settings, on a volume of one voxel's size per voxel; rank 2 has depth one."""
    import torchio

    volume = image.reshape(image.shape[0], *(1,) * (4 - image.ndim), *image.shape[1:])
    return getattr(torchio, transform)(**settings)(volume.cpu()).reshape(image.shape).to(image)

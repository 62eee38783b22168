"""The steps of `Degrade`: what makes a good image a bad one, in physical units.

An axis is a name of the patient's (`IS`, `AP`, `LR`: the array axis that runs along it most), a number of the
array's, or `any` for one that is drawn. An amount is a number, or `{low: 1, high: 3}` for one that is drawn evenly
in between. Lengths are mm. Amplitudes of noise are parts of the range of values, which is 1. Other packages add steps,
dataclasses that are called with a `Scan` and answer the one after it, through entry points `voxelry.degradations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.registry import Registry
from voxelry.core.space import Space
from voxelry.ops.acquisition import (
    PROFILES,
    add_gaussian,
    add_rician,
    gaussian_blur,
    thick_slices,
    truncate_kspace,
)
from voxelry.ops.low_dose import low_dose_noise

__all__ = ["STEPS", "Scan", "Step"]

Amount = float | str | Mapping[str, float]
Axis = str | int

_WORLD_AXIS = {"LR": 0, "RL": 0, "AP": 1, "PA": 1, "IS": 2, "SI": 2}


@dataclass(frozen=True)
class Scan:
    """An image on its way through the steps.

    Attributes:
        image: `(C, *spatial)` float32.
        space: its grid.
        generator: of all that is drawn.
        levels: `(C, 2)`, the physical values of 0 and 1 of each channel.
        present: `(C,)` bool, the channels that are there.
    """

    image: Tensor
    space: Space
    generator: np.random.Generator
    levels: Tensor
    present: Tensor

    def draw(self, amount: Amount) -> float:
        """A number, or one between the two ends of a mapping."""
        low, high = _ends(amount)
        return low if low == high else float(self.generator.uniform(low, high))

    def axis(self, axis: Axis) -> int:
        """The array axis that is meant.

        Raises:
            SettingError: the image has no such axis.
        """
        if axis == "any":
            return int(self.generator.integers(self.space.ndim))
        if isinstance(axis, int):
            if 0 <= axis < self.space.ndim:
                return axis
            raise SettingError(f"axis: expected 0 to {self.space.ndim - 1} for an image of this rank, got {axis}")
        runs = {world: place for place, (world, _) in enumerate(self.space.closest_axes())}
        if _WORLD_AXIS[axis] not in runs:
            raise SettingError(
                f"axis: no axis of this image runs along {axis}; its axes are {self.space.orientation} (axis: 0 is the "
                "first of the array, axis: any draws one)"
            )
        return runs[_WORLD_AXIS[axis]]


class Step(Protocol):
    """One change of a scan, whose settings are the fields of a dataclass."""

    def __call__(self, scan: Scan) -> Scan:
        """The scan after it."""


@dataclass(frozen=True, kw_only=True)
class KSpace:
    """Fewer phase-encoding steps, see `ops.acquisition.truncate_kspace`.

    Args:
        axis: one, or several.
        keep: part of the frequencies that is kept, in (0, 1]; may be written as `1/3`.
    """

    axis: Axis | Sequence[Axis]
    keep: Amount

    def __post_init__(self) -> None:
        _check_axes(self.axis)
        _check("keep", self.keep, 1e-6, 1)

    def __call__(self, scan: Scan) -> Scan:
        image = scan.image
        for axis in _listed(self.axis):
            image = truncate_kspace(image, scan.axis(axis), scan.draw(self.keep))
        return replace(scan, image=image)


@dataclass(frozen=True, kw_only=True)
class Rician:
    """The noise of magnitude images; `sigma` of its real and imaginary part."""

    sigma: Amount

    def __post_init__(self) -> None:
        _check("sigma", self.sigma, 0, np.inf)

    def __call__(self, scan: Scan) -> Scan:
        return replace(scan, image=add_rician(scan.image, scan.draw(self.sigma), scan.generator))


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Independent noise of standard deviation `sigma`."""

    sigma: Amount

    def __post_init__(self) -> None:
        _check("sigma", self.sigma, 0, np.inf)

    def __call__(self, scan: Scan) -> Scan:
        return replace(scan, image=add_gaussian(scan.image, scan.draw(self.sigma), scan.generator))


@dataclass(frozen=True, kw_only=True)
class LowDose:
    """Fewer photons, see `ops.low_dose`; values are brought to Hounsfield units by their levels.

    Args:
        dose: fraction of the tube current, in (0, 1]; may be written as `1/4`.
        axis: of the scanner; slices are perpendicular to it. An image of rank 2 is one slice.
        photons, electronic, views, surround: as in `ops.low_dose.low_dose_noise`.
    """

    dose: Amount
    axis: Axis = "IS"
    photons: Amount = 2e5
    electronic: Amount = 10.0
    views: int = 1000
    surround: Amount = 0.0

    def __post_init__(self) -> None:
        _check_axes(self.axis)
        _check("dose", self.dose, 1e-6, 1)
        _check("photons", self.photons, 1, np.inf)
        _check("views", self.views, 1, np.inf)
        _check("electronic", self.electronic, 0, np.inf)
        _check("surround", self.surround, 0, np.inf)

    def __call__(self, scan: Scan) -> Scan:
        low, high = (level.reshape(-1, *[1] * scan.space.ndim) for level in scan.levels.to(scan.image).unbind(1))
        in_plane = list(range(scan.space.ndim))
        if len(in_plane) > 2:
            in_plane.remove(scan.axis(self.axis))
        # Channels and slices in front, the two axes of the plane behind.
        turned = scan.image.mul(high - low).add_(low).movedim([axis + 1 for axis in in_plane], [-2, -1])
        noise = low_dose_noise(
            turned.reshape(-1, *turned.shape[-2:]),
            [scan.space.spacing[axis] for axis in in_plane],
            scan.generator,
            dose=scan.draw(self.dose),
            photons=scan.draw(self.photons),
            electronic=scan.draw(self.electronic),
            views=self.views,
            surround=scan.draw(self.surround),
        )
        noise = noise.reshape(turned.shape).movedim([-2, -1], [axis + 1 for axis in in_plane])
        return replace(scan, image=scan.image + noise / (high - low))


@dataclass(frozen=True, kw_only=True)
class ThickSlices:
    """Slices thicker than the voxels, interpolated back to their grid, see `ops.acquisition.thick_slices`.

    Args:
        axis: that the slices are stacked along.
        mm: thickness of a slice; a thinner one than the voxels changes nothing.
        factor: thickness in voxels, instead of `mm`.
        gap: between slices, as a part of their thickness; below 0 they overlap.
        profile: `box` or `gaussian`.
    """

    axis: Axis = "IS"
    mm: Amount | None = None
    factor: Amount | None = None
    gap: float = 0.0
    profile: str = "box"

    def __post_init__(self) -> None:
        _check_axes(self.axis)
        if (self.mm is None) == (self.factor is None):
            raise SettingError("thick_slices: expected one of mm and factor")
        for name, amount, low in (("mm", self.mm, float(np.finfo(np.float64).tiny)), ("factor", self.factor, 1.0)):
            if amount is not None:
                _check(name, amount, low, np.inf)
        _check("gap", self.gap, -0.9, np.inf)
        check_choice("profile", self.profile, PROFILES)

    def __call__(self, scan: Scan) -> Scan:
        axis = scan.axis(self.axis)
        if self.factor is not None:
            thickness = scan.draw(self.factor)
        else:
            assert self.mm is not None  # one of the two
            thickness = max(1.0, scan.draw(self.mm) / scan.space.spacing[axis])
        step = max(1.0, thickness * (1 + self.gap))
        return replace(scan, image=thick_slices(scan.image, axis, thickness, step=step, profile=self.profile))


@dataclass(frozen=True, kw_only=True)
class Blur:
    """A Gaussian of `fwhm` mm (full width at half maximum), one amount or one per array axis."""

    fwhm: Amount | Sequence[Amount]

    def __post_init__(self) -> None:
        for amount in _listed(self.fwhm):
            _check("fwhm", amount, 0, np.inf)

    def __call__(self, scan: Scan) -> Scan:
        ndim = scan.space.ndim
        widths = [scan.draw(amount) for amount in _listed(self.fwhm)]
        if len(widths) not in (1, ndim):
            raise SettingError(f"fwhm: expected 1 or {ndim} values (one per spatial axis), got {len(widths)}")
        voxels = np.broadcast_to(widths, ndim) / scan.space.spacing
        return replace(scan, image=gaussian_blur(scan.image, voxels.tolist()))


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Take channels away, each with this chance; one that is there stays."""

    chance: float

    def __post_init__(self) -> None:
        _check("chance", self.chance, 0, 1)

    def __call__(self, scan: Scan) -> Scan:
        kept = scan.present & torch.from_numpy(scan.generator.random(len(scan.present)) >= self.chance)
        left = torch.nonzero(scan.present).flatten()
        spared = left[int(scan.generator.integers(len(left)))]
        if not kept.any():
            kept[spared] = True
        return replace(scan, image=torch.where(_column(kept, scan), scan.image, 0.0), present=kept)


STEPS: Registry[type[Any]] = Registry(
    "degradations",
    "degrade",
    {
        "kspace": f"{__name__}:KSpace",
        "rician": f"{__name__}:Rician",
        "gaussian": f"{__name__}:Gaussian",
        "low_dose_ct": f"{__name__}:LowDose",
        "thick_slices": f"{__name__}:ThickSlices",
        "blur": f"{__name__}:Blur",
        "dropout": f"{__name__}:Dropout",
    },
)
"""The steps by the names that settings call them."""


def _column(values: Tensor, scan: Scan) -> Tensor:
    return values.reshape(-1, *[1] * scan.space.ndim)


def _ends(amount: Amount) -> tuple[float, float]:
    if isinstance(amount, Mapping):
        return _number(amount["low"]), _number(amount["high"])
    return (_number(amount),) * 2


def _number(value: Any) -> float:
    """A number, or a fraction as text."""
    return float(Fraction(value)) if isinstance(value, str) else float(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _check(name: str, amount: Any, low: float, high: float) -> None:
    try:
        if isinstance(amount, Mapping) and set(amount) != {"low", "high"}:
            raise ValueError
        first, last = _ends(amount)
    except (TypeError, ValueError, ZeroDivisionError):
        raise SettingError(f"{name}: expected a number or a mapping of low and high, got {amount!r}") from None
    if not low <= first <= last <= high or np.isinf(last):
        raise SettingError(f"{name}: expected {low:g} to {high:g}, low first, got {amount!r}")


def _check_axes(axes: Any) -> None:
    for axis in _listed(axes):
        known = axis == "any" or axis in _WORLD_AXIS if isinstance(axis, str) else type(axis) is int
        if not known:
            raise SettingError(f"axis: expected IS, AP, LR, any or the number of an array axis, got {axis!r}")

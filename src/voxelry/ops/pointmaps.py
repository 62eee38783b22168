"""Pointmaps: the position of every pixel, NaN where nothing is known; resized, remapped, normalised.

A pointmap is `(3, *spatial)`, x, y, z in any unit. A point with one NaN is unknown as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.choice import unknown_choice
from voxelry.core.errors import SettingError

__all__ = [
    "REMAPS",
    "PointScaling",
    "known_points",
    "remap_points",
    "resize_linear",
    "resize_nearest",
    "resize_pointmap",
    "resize_weights",
    "restore_points",
]

REMAPS = ("linear", "sinh", "exp", "sinh_exp", "exp_disparity")
"""Names of `remap_points`."""

FILLS = ("known", "zero")

METHODS = ("scene", "object", "apparent_size", "disparity")
SIZES = ("scene", "object", "range")


def known_points(points: Tensor) -> Tensor:
    """Whether each point is known, `(C, *spatial) -> (*spatial)` bool."""
    return torch.isfinite(points).all(dim=0)


def remap_points(points: Tensor, name: str) -> Tensor:
    """Points as numbers of a network, `(..., 3)`.

    Args:
        points: x, y, z.
        name: "linear": as they are; "sinh": inverse hyperbolic sine of each; "exp": x and y over `1 + z`, and
            `log(1 + z)`; "sinh_exp": inverse hyperbolic sine of x and y, and `log(z)`; "exp_disparity": x and y over z,
            and `log(z)`. All but the first two are NaN behind a camera.

    Raises:
        SettingError: an unknown name.
    """
    x, y, z = points.unbind(-1)
    if name == "linear":
        return points
    if name == "sinh":
        return points.asinh()
    if name == "exp":
        return torch.stack((x / (1 + z), y / (1 + z), z.log1p()), dim=-1)
    if name == "sinh_exp":
        return torch.stack((x.asinh(), y.asinh(), z.log()), dim=-1)
    if name == "exp_disparity":
        return torch.stack((x / z, y / z, z.log()), dim=-1)
    raise unknown_choice("remap", name, REMAPS)


def restore_points(points: Tensor, name: str) -> Tensor:
    """The inverse of `remap_points`.

    Raises:
        SettingError: an unknown name.
    """
    x, y, z = points.unbind(-1)
    if name == "linear":
        return points
    if name == "sinh":
        return points.sinh()
    if name == "exp":
        return torch.stack((x * z.exp(), y * z.exp(), z.expm1()), dim=-1)
    if name == "sinh_exp":
        return torch.stack((x.sinh(), y.sinh(), z.exp()), dim=-1)
    if name == "exp_disparity":
        return torch.stack((x * z.exp(), y * z.exp(), z.exp()), dim=-1)
    raise unknown_choice("remap", name, REMAPS)


def resize_weights(old: int, new: int) -> Tensor:
    """Linear interpolation of one axis, `(new, old)` float64: outer edges stay; where pixels grow, over their size."""
    scale = old / new
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5
    away = (places[:, None] - torch.arange(old, dtype=torch.float64)) / max(scale, 1.0)
    weights = (1 - away.abs()).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def resize_pointmap(points: Tensor, shape: Sequence[int], *, coverage: float = 0.5, fill: str = "known") -> Tensor:
    """Resize a pointmap with unknown pixels; outer edges stay where they are.

    Args:
        points: `(C, *spatial)`, NaN (in any channel) where unknown.
        shape: the new spatial shape.
        coverage: of "known", the certainty in (0, 1] from which a new pixel is known.
        fill: "known": values and certainty (1 known, 0 unknown) are interpolated alike and divided (Knutsson & Westin
            1993, CVPR, 515-523, order zero), so a result is a mean of known values and nothing else: points of a plane
            stay in it. "zero": unknown pixels count as 0 and the nearest pixel says what is known, as SAM 3D Objects
            was trained; values at edges are drawn to 0.

    Returns:
        `(C, *shape)` float32, NaN where unknown.

    Raises:
        SettingError: sizes or a coverage out of range, an unknown fill.
    """
    if not 0 < coverage <= 1:
        raise SettingError(f"coverage: expected a number in (0, 1], got {coverage!r}")
    if fill not in FILLS:
        raise unknown_choice("fill", fill, FILLS)
    new = [int(size) for size in shape]
    if len(new) != points.ndim - 1 or min(new) < 1:
        raise SettingError(f"shape: expected {points.ndim - 1} positive sizes, got {tuple(shape)}")
    known = known_points(points)
    if fill == "zero":
        values = torch.where(torch.isfinite(points), points.double(), 0.0)
        return torch.where(resize_nearest(known, new), resize_linear(values, new), torch.nan).float()
    values = torch.where(known, points.double(), 0.0)
    certainty = resize_linear(known[None].double(), new)[0]
    mean = resize_linear(values, new) / certainty.clamp(min=1e-6)
    return torch.where(certainty >= coverage - 1e-5, mean, torch.nan).float()


def resize_linear(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Every spatial axis of `(C, *spatial)` to a new size, by `resize_weights`; of the type of `values`."""
    for axis, size in enumerate(shape, start=1):
        weights = resize_weights(values.shape[axis], size).to(values)
        values = (values.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return values


@dataclass(frozen=True, kw_only=True)
class PointScaling:
    """How pointmaps are brought to numbers around 0 and 1, as SAM 3D Objects does it.

    Medians are the lower of two middle values, of what is known.

    Attributes:
        method: "scene": depth is centred on its median, the mean distance from there along an axis is 1. "object": the
            object is centred, see `size`. "apparent_size": nothing is centred, the depth's median is 1. "disparity": x
            and y over depth and the logarithm of depth, centred on the median.
        size: "scene" or "object", which points' medians give the scale (of "disparity": the centre; with "scene" of the
            depth alone). Of method "object": the median of the largest distance along an axis over all points, or of
            the distance over the object's points; or "range": twice the range of that distance without the nearest and
            the furthest points.
        factor: the scale is this many times larger.
        clip: points beyond this distance ("apparent_size": depth; "disparity": depth to either side) become unknown;
            None or 0 for none.
        log_shift: added to the centre of the logarithm of "disparity" with size "scene".
        left_out: of "range", the share of the nearest points, and of the furthest.

    Raises:
        SettingError: an unknown method or size, a share that leaves nothing.
    """

    method: str = "object"
    size: str = "scene"
    factor: float = 1.0
    clip: float | None = None
    log_shift: float = 0.0
    left_out: float = 0.1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_choice("method", self.method, METHODS)
        if self.size not in SIZES:
            raise unknown_choice("size", self.size, SIZES)
        if not 0 <= self.left_out < 0.5:
            raise SettingError(f"left_out: expected a share in [0, 0.5), got {self.left_out}")

    def measure(self, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of a pointmap, `(3,)` each; `factor` and 0 where nothing is known of what they are taken of.

        Args:
            points: `(3, *spatial)`.
            mask: `(*other)` of the object, any size; the nearest pixels count, above 0.5.
        """
        every = points.flatten(1)
        own = every[:, (resize_nearest(mask, points.shape[1:]) > 0.5).flatten()]
        chosen = every if self.size == "scene" or self.method == "scene" else own
        centred = own if self.method == "object" else chosen
        ones, zeros = points.new_full((3,), self.factor), points.new_zeros(3)
        if centred.shape[1] == 0 or centred.isnan().all(dim=1).any():
            return ones, zeros
        if self.method == "apparent_size":
            return ones * chosen[2].nanmedian(), zeros
        if self.method == "disparity":
            return ones, self._disparity_centre(chosen)
        depth_only = zeros.new_tensor([0, 0, 1]) if self.method == "scene" else zeros + 1
        shift = centred.nanmedian(dim=1).values * depth_only
        return ones * self._size_of(chosen - shift[:, None]), shift

    def _disparity_centre(self, points: Tensor) -> Tensor:
        centre = _disparities(points).nanmedian(dim=1).values
        return (
            centre if self.size != "scene" else torch.stack((0 * centre[0], 0 * centre[1], centre[2] + self.log_shift))
        )

    def _size_of(self, away: Tensor) -> Tensor:
        """The size of points around their centre, `(3, N) -> ()`."""
        if self.method == "scene":
            return away.abs().nanmean()
        if self.size == "scene":
            return away.abs().amax(dim=0).nanmedian()
        lengths = away.norm(dim=0)
        if self.size == "object":
            return lengths.nanmedian()
        ends = lengths.nanquantile(lengths.new_tensor([self.left_out, 1 - self.left_out]))
        return 2 * (ends[1] - ends[0])

    def normalise(self, points: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Points to numbers, `(3, *spatial)`; NaN as a whole where unknown or clipped."""
        points = torch.where(known_points(points), points, torch.nan)
        found = _disparities(points) if self.method == "disparity" else points
        found = (found - _per_point(shift, found)) / _per_point(scale, found)
        if self.clip:
            depth = found[2] if self.method == "apparent_size" else found[2].abs()
            away = found.norm(dim=0) if self.method in ("scene", "object") else depth
            found = torch.where(away > self.clip, torch.nan, found)
        return found

    def restore(self, numbers: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The inverse of `normalise`, but for what was clipped."""
        found = numbers * _per_point(scale, numbers) + _per_point(shift, numbers)
        if self.method != "disparity":
            return found
        return restore_points(found.movedim(0, -1), "exp_disparity").movedim(-1, 0)


def _disparities(points: Tensor) -> Tensor:
    return remap_points(points.movedim(0, -1), "exp_disparity").movedim(-1, 0)


def _per_point(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def resize_nearest(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Every spatial axis of `(*spatial)` to a new size, by the nearest pixel that isn't beyond the place."""
    for axis, size in enumerate(shape):
        rows = torch.arange(size, device=values.device) * values.shape[axis] // size
        values = values.index_select(axis, rows)
    return values

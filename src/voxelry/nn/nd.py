"""The one place that knows ranks: layer classes, interpolation modes and memory formats by `ndim`.

Everything else reads the rank from `x.shape[2:]` or passes `ndim` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.rank import check_ndim
from voxelry.nn import onednn

__all__ = [
    "autocast_dtype",
    "average_pool",
    "batch_norm",
    "channels_last",
    "conv",
    "convolve",
    "half_is_unsafe",
    "interpolation_mode",
    "max_pool",
    "per_channel",
    "resize_smoothly",
    "transposed_conv",
    "transposed_convolve",
    "without_autocast",
]


def conv(ndim: int) -> Any:
    """The convolution layer of a rank: 2 → `nn.Conv2d`, 3 → `nn.Conv3d`.

    Raises:
        SettingError: any other rank.
    """
    return _Volume if check_ndim(ndim) == 3 else nn.Conv2d


class _Volume(nn.Conv3d):
    """`nn.Conv3d` that goes through `convolve`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = self.padding_mode == "zeros" and self.groups == max(self.dilation) == 1 and input.ndim == weight.ndim
        if isinstance(self.padding, str) or not plain:
            return super()._conv_forward(input, weight, bias)
        return convolve(input, weight, bias, stride=self.stride, padding=self.padding)


def transposed_conv(ndim: int) -> Any:
    """The transposed convolution layer of a rank."""
    return nn.ConvTranspose3d if check_ndim(ndim) == 3 else nn.ConvTranspose2d


def batch_norm(ndim: int) -> Any:
    """The batch normalisation layer of a rank."""
    return nn.BatchNorm3d if check_ndim(ndim) == 3 else nn.BatchNorm2d


def interpolation_mode(ndim: int) -> str:
    """The linear mode of `torch.nn.functional.interpolate` in a rank."""
    return "trilinear" if check_ndim(ndim) == 3 else "bilinear"


def channels_last(ndim: int) -> torch.memory_format:
    """The memory format that keeps the channels of a voxel together, for `(B, C, *spatial)`."""
    return torch.channels_last_3d if check_ndim(ndim) == 3 else torch.channels_last


def average_pool(x: Tensor, window: Sequence[int]) -> Tensor:
    """Mean of every window, `(B, C, *S) -> (B, C, *(S // window))`; stride and window are the same."""
    pool = F.avg_pool3d if x.ndim == 5 else F.avg_pool2d
    return pool(x, tuple(window))


def max_pool(
    x: Tensor, window: Sequence[int], *, stride: Sequence[int], padding: Sequence[int] | int = 0, ceil: bool = False
) -> Tensor:
    """Largest value of every window, `(B, C, *S)`; with `ceil` a window that hangs over the end counts too."""
    pool = F.max_pool3d if x.ndim == 5 else F.max_pool2d
    around = padding if isinstance(padding, int) else tuple(padding)
    return pool(x, tuple(window), tuple(stride), around, 1, ceil)


def resize_smoothly(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a table of learned values, `(B, C, *S) -> (B, C, *size)`: bicubic in 2-D, trilinear in 3-D.

    Axes of one entry are repeated and don't count: a 2-D table in a 3-D network stays a 2-D table.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    kept = [axis for axis, length in enumerate(x.shape[2:]) if length > 1]
    wanted = [size[axis] for axis in kept]
    if wanted != [x.shape[2 + axis] for axis in kept]:
        rank = max(len(kept), 2)
        lead = [1] * (rank - len(kept))
        flat = x.reshape(*x.shape[:2], *lead, *[x.shape[2 + axis] for axis in kept])
        mode = "trilinear" if rank == 3 else "bicubic"
        resized = F.interpolate(flat, size=(*lead, *wanted), mode=mode, align_corners=False)
        x = resized.reshape(*x.shape[:2], *(size[axis] if axis in kept else 1 for axis in range(len(size))))
    return x.expand(*x.shape[:2], *size)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int] | None = None, padding: Sequence[int]
) -> Tensor:
    """Convolution in the rank of `weight`, `(C_out, C_in, *kernel)`, with zero padding per axis."""
    ndim = weight.ndim - 2
    strides, ones = list(stride or [1] * ndim), [1] * ndim
    x, weight, bias = _autocast(x, weight, bias)
    if half_is_unsafe(x, weight):
        wide = None if bias is None else bias.float()
        return torch.convolution(
            x.float(), weight.float(), wide, strides, list(padding), ones, False, [0] * ndim, 1
        ).to(x.dtype)
    if onednn.is_skipped(x, weight):
        return onednn.convolve(x, weight, bias, stride=strides, padding=padding)
    return torch.convolution(x, weight, bias, strides, list(padding), ones, False, [0] * ndim, 1)


def transposed_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Transposed convolution in the rank of `weight`, `(C_in, C_out, *kernel)`."""
    ndim = weight.ndim - 2
    x, weight, bias = _autocast(x, weight, bias)
    return torch.convolution(x, weight, bias, list(stride), list(padding), [1] * ndim, True, [0] * ndim, 1)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as `F.conv2d` would be under autocast: the rank-free convolution is not on autocast's list."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return x, weight, bias
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes in where `x` is; None without autocast, and on devices that have none (meta)."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if known else None


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations on the device of `x` keep the types they are given."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def half_is_unsafe(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution must not run in half precision: on a CPU, with the input smaller than the kernel.

    There oneDNN 3.12 leaves parts of the weight's gradient uninitialised (seen at 2³ voxels).
    """
    small = min(x.shape[2:]) < max(weight.shape[2:])
    return small and x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """View `(C,)` or `(B, C)` so that it broadcasts over the spatial axes of `like`, `(B, C, *S)`."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - 2))

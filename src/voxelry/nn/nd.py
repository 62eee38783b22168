"""The one place that knows ranks: layer classes, interpolation modes and memory formats by `ndim`.

Everything else reads the rank from `x.shape[2:]` or passes `ndim` on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.rank import check_ndim
from voxelry.nn import onednn, pointwise
from voxelry.ops import winograd

__all__ = [
    "arranged",
    "autocast_dtype",
    "average_pool",
    "batch_norm",
    "channels_last",
    "contiguous_kernels",
    "conv",
    "convolve",
    "half_is_unsafe",
    "interpolation_mode",
    "max_pool",
    "nearest",
    "per_channel",
    "resize_smoothly",
    "transposed_conv",
    "transposed_convolve",
    "without_autocast",
]


def pays(x: Tensor) -> bool:
    """Whether maps and kernels lie channels-last in memory where `x` is, from the first layer to the last.

    On a CPU a convolution of volumes so takes 0.5 to 1 of its time in float32, and a quarter in bfloat16; those of
    planes are no faster, and ResNets of planes so laid out ended in a damaged heap (seen with torch 2.13 and AVX2, the
    cause not isolated). On a GPU tensor cores ask for it. Metal has no such convolutions of volumes.
    """
    return x.device.type in ("cuda", "meta") or (x.device.type == "cpu" and x.ndim == 5)


def arranged(x: Tensor) -> Tensor:
    """A feature map `(B, C, *S)` or kernel as its device's convolutions want it in memory, copied only if it is not.

    The one place that decides it, by `pays`: layers make their kernels so, and `convolve` its input; all else keeps
    what it gets.
    """
    if not pays(x):
        return x.contiguous()
    # not `contiguous`, for which one channel is any layout, and the convolution's result then is not this one
    return x.to(memory_format=channels_last(x.ndim - 2))


_contiguous: ContextVar[bool] = ContextVar("voxelry_contiguous_kernels", default=False)


@contextmanager
def contiguous_kernels() -> Iterator[None]:
    """Layers made within have contiguous kernels, which are arranged at each use: for code that views them."""
    token = _contiguous.set(True)
    try:
        yield
    finally:
        _contiguous.reset(token)


class _Arranged(nn.Module):
    """A convolution whose kernel is as its device wants it, and which goes through `convolve`."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        layer: Any = self
        if not _contiguous.get():
            layer.weight = nn.Parameter(arranged(layer.weight.detach()))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or input.ndim != weight.ndim:
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        return convolve(
            input,
            weight,
            bias,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )


class _Plane(_Arranged, nn.Conv2d):
    """`nn.Conv2d` in its device's layout."""


class _Volume(_Arranged, nn.Conv3d):
    """`nn.Conv3d` in its device's layout."""


class _FinerPlane(_Arranged, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` in its device's layout."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _with_gradient_arranged(super().forward(arranged(input), output_size))


class _FinerVolume(_Arranged, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` in its device's layout."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _with_gradient_arranged(super().forward(arranged(input), output_size))


def conv(ndim: int) -> Any:
    """The convolution layer of a rank, an `nn.Conv2d` or `nn.Conv3d`.

    Raises:
        SettingError: any other rank.
    """
    return _Volume if check_ndim(ndim) == 3 else _Plane


def transposed_conv(ndim: int) -> Any:
    """The transposed convolution layer of a rank."""
    return _FinerVolume if check_ndim(ndim) == 3 else _FinerPlane


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
    y = x.movedim(1, -1)  # axis by axis, which keeps volumes channels-last; PyTorch's own does not
    for axis, step in enumerate(window, start=1):
        y = y.narrow(axis, 0, y.shape[axis] // step * step).unflatten(axis, (-1, step)).mean(dim=axis + 1)
    return y.movedim(-1, 1)


def max_pool(
    x: Tensor, window: Sequence[int], *, stride: Sequence[int], padding: Sequence[int] | int = 0, ceil: bool = False
) -> Tensor:
    """Largest value of every window, `(B, C, *S)`; with `ceil` a window that hangs over the end counts too."""
    pool = F.max_pool3d if x.ndim == 5 else F.max_pool2d
    around = padding if isinstance(padding, int) else tuple(padding)
    return pool(x, tuple(window), tuple(stride), around, 1, ceil)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest interpolation to a size, `(B, C, *S) -> (B, C, *size)`, of the voxels that PyTorch's takes.

    Its gradient stays channels-last in volumes, which PyTorch's does not.
    """
    y = x.movedim(1, -1)
    for axis, length in enumerate(size, start=1):
        short = y.shape[axis]
        if length % short == 0:
            y = y if length == short else y.repeat_interleave(length // short, dim=axis)
        else:
            place = torch.arange(length, dtype=torch.float32, device=x.device) * (short / length)
            y = y.index_select(axis, place.floor().long().clamp(max=short - 1))
    return y.movedim(-1, 1)


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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int] | None = None,
    padding: Sequence[int],
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution in the rank of `weight`, `(C_out, C_in / groups, *kernel)`, with zero padding per axis."""
    ndim = weight.ndim - 2
    strides, gaps = list(stride or [1] * ndim), list(dilation or [1] * ndim)
    x, weight, bias = _autocast(x, weight, bias)
    x, weight = arranged(x), arranged(weight)
    if half_is_unsafe(x, weight):
        with without_autocast(x):
            wide = convolve(
                x.float(), weight.float(), None if bias is None else bias.float(), stride=strides, padding=padding,
                dilation=gaps, groups=groups,
            )  # fmt: skip
        return wide.to(x.dtype)
    if groups == max(gaps) == 1 and pointwise.is_pointwise(x, weight, padding=padding):
        y = pointwise.convolve(x, weight, bias, stride=strides)
    elif _is_along_planes(x, weight) and max(strides) == 1 and not any(padding[1:]):
        # along the second axis, rows and columns as one: on one thread PyTorch leaves oneDNN aside for such a kernel
        flat, kernel = x.flatten(3).unsqueeze(2), weight.flatten(3).unsqueeze(2)
        y = convolve(flat, kernel, bias, padding=[0, padding[0], 0], dilation=[1, gaps[0], 1], groups=groups)
        return y.squeeze(2).unflatten(3, x.shape[3:])
    elif groups == max(gaps) == max(strides) == 1 and winograd.pays(x, weight):
        y = winograd.convolve(x, weight, bias, padding=padding)
    elif groups == max(gaps) == 1 and onednn.is_skipped(x, weight):
        y = onednn.convolve(x, weight, bias, stride=strides, padding=padding)
    else:
        y = torch.convolution(x, weight, bias, strides, list(padding), gaps, False, [0] * ndim, groups)
    return _with_gradient_arranged(y)


def _is_along_planes(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel of volumes is longer than one voxel along its first axis alone, on a CPU."""
    return x.device.type == "cpu" and weight.ndim == 5 and weight.shape[2] > 1 and weight.shape[3:] == (1, 1)


def transposed_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Transposed convolution in the rank of `weight`, `(C_in, C_out, *kernel)`."""
    ndim = weight.ndim - 2
    x, weight, bias = _autocast(x, weight, bias)
    x, weight = arranged(x), arranged(weight)
    return _with_gradient_arranged(
        torch.convolution(x, weight, bias, list(stride), list(padding), [1] * ndim, True, [0] * ndim, 1)
    )


def _with_gradient_arranged(y: Tensor) -> Tensor:
    """The result of a convolution; whatever layout its gradient comes in, the one that goes back is `arranged`."""
    if y.requires_grad and not torch.compiler.is_compiling():
        y.register_hook(arranged)
    return y


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

"""Convolutions with a twist: standardised weights, resampling between the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.nn import nd
from voxelry.nn.norm import standardise

__all__ = [
    "DOWN",
    "UP",
    "AverageDown",
    "NearestConvUp",
    "NearestUp",
    "SeparableConv",
    "SpaceToDepthDown",
    "StridedDown",
    "WeightStandardisedConv",
    "fold_nearest",
]


class WeightStandardisedConv(nn.Module):
    """Convolution whose kernels are standardised at each use, `(B, C_in, *S) -> (B, C_out, *S)`.

    The kernel must be odd; zero padding keeps the size.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, kernel_size: int | Sequence[int] = 3):
        super().__init__()
        like = nd.conv(ndim)(in_channels, out_channels, per_axis(kernel_size, ndim, "kernel_size"))
        self.weight = like.weight
        self.bias = like.bias if like.bias is not None else nn.Parameter(torch.zeros(out_channels))
        self.padding = tuple(size // 2 for size in like.kernel_size)

    @property
    def standard(self) -> float:
        """The constant added to the variance of a kernel.

        Under autocast the parameters stay float32, so the larger constant of the original's
        half-precision path is needed only where the parameters themselves are half.
        """
        return 1e-3 if self.weight.dtype in (torch.float16, torch.bfloat16) else 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the standardised kernels."""
        return nd.convolve(x, standardise(self.weight, self.standard), self.bias, padding=self.padding)


class SeparableConv(nn.Module):
    """A 3-wide convolution along each axis for every channel by itself, then one that mixes them.

    `(B, C_in, *S) -> (B, C_out, *S)`. Per voxel `C_in * (3 * ndim + C_out)` products in place of
    `C_in * C_out * 3^ndim` (Chollet 2017, arXiv:1610.02357, with the depthwise part separated by axis as well). The
    last axis comes first, so that weights of a plane keep their names in a volume.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int):
        super().__init__()
        conv = nd.conv(ndim)
        kernels = [tuple(3 if axis == along else 1 for axis in range(ndim)) for along in reversed(range(ndim))]
        self.along = nn.ModuleList(
            conv(in_channels, in_channels, kernel, padding=[k // 2 for k in kernel], groups=in_channels, bias=False)
            for kernel in kernels
        )
        self.mix = conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        for axis in self.along:
            x = axis(x)
        return self.mix(x)


class SpaceToDepthDown(nn.Module):
    """Every block of `stride` voxels to one, all of its values weighted, `(B, C, *S) -> (B, C', *(S / stride))`.

    Moving space into channels and mixing them with a 1×1 convolution is one convolution whose kernel
    equals its stride; as that it needs no rearranged copy.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        self.conv = nd.conv(ndim)(in_channels, out_channels, kernel_size=tuple(stride), stride=tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        """Downsample; each size must be a multiple of the stride."""
        return self.conv(x)


class StridedDown(nn.Module):
    """Strided convolution of width 3, padded at the far end only, `(B, C, *S) -> (B, C', *(S / stride))`.

    The padding of the original DDPM: on each strided axis output `i` sees inputs `stride * i` to
    `stride * i + 2`; an axis of stride 1 is padded on both sides.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        self.conv = nd.conv(ndim)(in_channels, out_channels, kernel_size=3, stride=tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        """Downsample; each size must be a multiple of the stride."""
        pads = [side for step in reversed(self.conv.stride) for side in ((1, 1) if step == 1 else (0, 1))]
        return self.conv(F.pad(x, pads))


class AverageDown(nn.Module):
    """Mean of every block of `stride` voxels; the number of channels stays."""

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        if in_channels != out_channels:
            raise SettingError(f"down: average keeps the channels, but {in_channels} to {out_channels} were asked for")
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample; each size must be a multiple of the stride."""
        return nd.average_pool(x, self.stride)


class NearestUp(nn.Module):
    """Every voxel repeated `stride` times along each axis; the number of channels stays."""

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        if in_channels != out_channels:
            raise SettingError(f"up: nearest keeps the channels, but {in_channels} to {out_channels} were asked for")
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample."""
        return nd.nearest(x, [size * step for size, step in zip(x.shape[2:], self.stride, strict=True)])


def fold_nearest(weight: Tensor, stride: Sequence[int]) -> Tensor:
    """The transposed kernel that equals nearest upsampling followed by a width-3 convolution.

    `(C_out, C_in, 3, ...) -> (C_in, C_out, stride + 2, ...)`. With `y[j] = Σ_t w[t] x[(j + t - 1) // s]`, the
    weight between `x[i]` and `y[s i + m - 1]` is the sum of those `w[t]` for which `0 <= m + t - 2 < s`.
    """
    folded = weight.transpose(0, 1)
    for step in stride:
        reach = torch.arange(step + 2)[:, None] + torch.arange(3) - 2
        fold = ((reach >= 0) & (reach < step)).to(folded)
        folded = torch.tensordot(folded, fold, dims=([2], [1]))  # the new axis comes last: after all axes, in order
    return folded


class NearestConvUp(nn.Module):
    """Nearest upsampling, then a convolution of width 3, `(B, C, *S) -> (B, C', *(S * stride))`.

    Computed as one transposed convolution of the small input: at stride 2 in 3-D, 64 products per
    input voxel instead of 216, and the upsampled tensor is never made.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        self.conv = nd.conv(ndim)(in_channels, out_channels, kernel_size=3, padding=1)
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample and convolve."""
        weight = fold_nearest(self.conv.weight, self.stride)
        return nd.transposed_convolve(x, weight, self.conv.bias, stride=self.stride, padding=[1] * len(self.stride))


class LinearUp(nn.Module):
    """Bilinear or trilinear upsampling; the number of channels stays."""

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        if in_channels != out_channels:
            raise SettingError(f"up: linear keeps the channels, but {in_channels} to {out_channels} were asked for")
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample."""
        return linear_upsampled(x, self.stride)


class LinearConvUp(nn.Module):
    """Bilinear or trilinear upsampling, then a convolution of width 3, `(B, C, *S) -> (B, C', *(S * stride))`."""

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, stride: Sequence[int]):
        super().__init__()
        self.conv = nd.conv(ndim)(in_channels, out_channels, kernel_size=3, padding=1)
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample and convolve."""
        return self.conv(linear_upsampled(x, self.stride))


def linear_upsampled(x: Tensor, stride: Sequence[int]) -> Tensor:
    """`(B, C, *S) -> (B, C, *(S * stride))`, corners of the grid not aligned."""
    size = [length * step for length, step in zip(x.shape[2:], stride, strict=True)]
    return F.interpolate(x, size=size, mode=nd.interpolation_mode(x.ndim - 2), align_corners=False)


DOWN: dict[str, type[nn.Module]] = {
    "space_to_depth": SpaceToDepthDown,
    "strided": StridedDown,
    "average": AverageDown,
}
UP: dict[str, type[nn.Module]] = {
    "nearest_conv": NearestConvUp,
    "nearest": NearestUp,
    "linear_conv": LinearConvUp,
    "linear": LinearUp,
}

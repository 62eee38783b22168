"""The networks behind a feature pyramid: for proposals, for boxes and for masks, in any rank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from voxelry.core.rank import per_axis
from voxelry.models.mask_rcnn.settings import MaskSettings
from voxelry.nn import nd
from voxelry.nn.norm import make_norm
from voxelry.ops.fold import unfold_voxels

_PART = 1 << 21  # numbers of the finest features that are made at a time: 8 MB, which stay in the cache

__all__ = ["BOX_HEADS", "BoxPredictor", "ConvBoxHead", "ConvNormReLU", "MaskHead", "ProposalHead", "TwoMLPHead"]


class ConvNormReLU(nn.Module):
    """Convolution of width 3, a normalisation where one is named, ReLU, `(B, C_in, *S) -> (B, C_out, *S)`.

    Weights as He et al. 2015 draw them for a ReLU after the layer; with a normalisation there is no bias.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int, norm: str | None = None):
        super().__init__()
        self.conv = nd.conv(ndim)(in_channels, out_channels, 3, padding=1, bias=norm is None)
        self.norm = None if norm is None else make_norm(norm, out_channels, ndim=ndim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        x = nd.convolve(x, self.conv.weight, self.conv.bias, padding=self.conv.padding)
        return torch.relu(x if self.norm is None else self.norm(x))


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor of every level (Ren et al. 2015, section 3.1).

    Args:
        channels: of every level.
        num_anchors: anchors per voxel.
        depth: convolutions before the two outputs.
    """

    def __init__(self, channels: int, num_anchors: int, *, ndim: int, depth: int = 1):
        super().__init__()
        self.convs = nn.Sequential(*(ConvNormReLU(channels, channels, ndim=ndim) for _ in range(depth)))
        self.objectness = nd.conv(ndim)(channels, num_anchors, 1)
        self.deltas = nd.conv(ndim)(channels, num_anchors * 2 * ndim, 1)
        for layer in (*(block.conv for block in self.convs), self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: logits `(B, A, *S)` and deltas `(B, A * 2 * ndim, *S)`, those of an anchor together."""
        hidden = [self.convs(level) for level in features]
        return [self.objectness(level) for level in hidden], [self.deltas(level) for level in hidden]


class TwoMLPHead(nn.Module):
    """Two fully connected layers with ReLU, `(K, C, *size) -> (K, width)` (Lin et al. 2017, arXiv:1612.03144)."""

    def __init__(self, channels: int, size: Sequence[int], *, ndim: int, width: int = 1024):
        super().__init__()
        self.fc6 = nn.Linear(channels * math.prod(size), width)
        self.fc7 = nn.Linear(width, width)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Features of each region."""
        return torch.relu(self.fc7(torch.relu(self.fc6(x.flatten(1)))))


class ConvBoxHead(nn.Module):
    """Convolutions and one fully connected layer, `(K, C, *size) -> (K, width)` (Wu & He 2018, section 4.3).

    Args:
        convs: channels of each convolution.
        norm: name of a normalisation, see `nn.norm.make_norm`, or None.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        *,
        ndim: int,
        width: int = 1024,
        convs: Sequence[int] = (256, 256, 256, 256),
        norm: str | None = "batch",
    ):
        super().__init__()
        widths = [channels, *convs]
        self.convs = nn.Sequential(*(ConvNormReLU(a, b, ndim=ndim, norm=norm) for a, b in itertools.pairwise(widths)))
        self.fc = nn.Linear(widths[-1] * math.prod(size), width)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Features of each region."""
        return torch.relu(self.fc(self.convs(x).flatten(1)))


BOX_HEADS: dict[str, type[nn.Module]] = {"mlp": TwoMLPHead, "conv": ConvBoxHead}


class BoxPredictor(nn.Module):
    """Class logits and, for each class, box deltas: `(K, C) -> (K, classes), (K, classes, 2 * ndim)`."""

    def __init__(self, channels: int, num_classes: int, *, ndim: int):
        super().__init__()
        self.classes = nn.Linear(channels, num_classes)
        self.deltas = nn.Linear(channels, num_classes * 2 * ndim)
        self.num_classes = num_classes
        for layer, deviation in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas of each region; class 0 is background."""
        return self.classes(x), self.deltas(x).unflatten(1, (self.num_classes, -1))


class MaskHead(nn.Module):
    """Mask logits of every class, twice as fine as the features, `(K, C, *M) -> (K, classes, *2M)`.

    He et al. 2017 (arXiv:1703.06870, figure 4): convolutions, a transposed convolution of width and stride 2, and a
    convolution of width 1.

    Args:
        settings: convolutions, the last of which is as wide as the finer features, and how much finer those are.
    """

    def __init__(self, channels: int, num_classes: int, settings: MaskSettings, *, ndim: int):
        super().__init__()
        widths, self.norm = [channels, *settings.convs], settings.norm
        self.convs = nn.Sequential(
            *(ConvNormReLU(a, b, ndim=ndim, norm=self.norm) for a, b in itertools.pairwise(widths))
        )
        self.upsample = per_axis(settings.upsample, ndim, "mask.upsample")
        self.finer = nd.transposed_conv(ndim)(widths[-1], widths[-1], self.upsample, self.upsample)
        self.logits = nd.conv(ndim)(widths[-1], num_classes, 1)
        nn.init.kaiming_normal_(self.finer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.finer.bias)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Logits of one class per region, `(K, C, *M), (K,) int64 -> (K, *2M)`.

        The finest features, eight times as many as those before them in a volume, are made for a few regions at a
        time, and again in the backward pass.
        """
        x = self.convs(x).movedim(1, -1)
        size = max(1, _PART // (x[:1].numel() * math.prod(self.upsample)))
        if len(x) <= size:
            return self.finish(x, classes)
        parts = zip(x.split(size), classes.split(size), strict=True)
        weights = (*self.finer.parameters(), *self.logits.parameters())
        return torch.cat([_Finish.apply(self, *part, *weights) for part in parts])

    def finish(self, x: Tensor, classes: Tensor) -> Tensor:
        """The transposed convolution, ReLU and the logits of one class, `(K, *M, C), (K,) -> (K, *2M)`.

        Windows of the transposed convolution don't overlap, so that it is a product of matrices, and what is made of
        a voxel stays together until there is one number of each finer one.
        """
        finer, size, classes_of = self.finer, x.shape[1:-1], self.logits
        kernel = finer.weight.movedim(1, -1).flatten(1).t()
        # of rows: behind a view a change in place would be copied in the backward pass
        fine = torch.relu_(F.linear(x.flatten(0, -2), kernel, finer.bias.repeat(math.prod(self.upsample))))
        weight, bias = classes_of.weight.flatten(1)[classes].to(fine.dtype), classes_of.bias[classes].to(fine.dtype)
        # of the other classes no logits are made
        one = torch.baddbmm(bias[:, None, None], fine.reshape(len(x), -1, finer.out_channels), weight[:, :, None])
        return unfold_voxels(one.reshape(len(x), *size, -1).movedim(-1, 1), self.upsample)[:, 0]


class _Finish(torch.autograd.Function):
    """`MaskHead.finish`, made again in the backward pass; `torch.utils.checkpoint` would load PyTorch's compiler."""

    @staticmethod
    def forward(ctx: Any, head: MaskHead, x: Tensor, classes: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, classes, *weights)
        ctx.head, ctx.dtype = head, nd.autocast_dtype(x)
        return head.finish(x, classes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, classes, *weights = ctx.saved_tensors
        precision = nullcontext() if ctx.dtype is None else torch.autocast(x.device.type, ctx.dtype)
        given = x.detach().requires_grad_()
        with torch.enable_grad(), precision:
            answer = ctx.head.finish(given, classes)
        learned = [weight for weight in weights if weight.requires_grad]
        of_x, *found = torch.autograd.grad(answer, (given, *learned), grad)
        rest = iter(found)
        return None, of_x, None, *(next(rest) if weight.requires_grad else None for weight in weights)

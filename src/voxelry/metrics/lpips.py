"""Learned perceptual similarity, of planes: a "2.5-D" figure for comparison with what others report.

Zhang et al. 2018 (arXiv:1801.03924), version 0.1 with AlexNet. The network was made for photographs, so `gmsd` and
`spectral_distance` of `metrics.perception` are what to judge volumes by. Nothing is downloaded: AlexNet's weights have
to be on disk, those of the layers that compare its features come with torchmetrics.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from voxelry.core.errors import FileError, SettingError
from voxelry.metrics.distribution import cuts
from voxelry.metrics.images import checked_pair
from voxelry.nn import nd

__all__ = ["lpips"]

_LAYERS = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))  # channels in and out, kernel
_PLACES = (0, 3, 6, 8, 10)  # of the convolutions in the published network
_POOLED = (1, 2)  # layers that see the maximum of 3 × 3
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST = 32
_PLANES_AT_ONCE = 16


def lpips(image: Tensor, reference: Tensor, *, weights: str | os.PathLike[str], slices: int = 8) -> Tensor:
    """LPIPS of every image, `(B,)`, 0 for equal ones; of a volume the mean over planes along each axis.

    Args:
        image, reference: `(B, C, *spatial)` in [0, 1], C = 1 or 3.
        weights: AlexNet as torchvision publishes it, `alexnet-owt-7be5be79.pth`.
        slices: planes along each axis of a volume, evenly spread.

    Raises:
        FileError: there is no such file, or it doesn't hold AlexNet's tensors, and nothing else.
        SettingError: another number of channels, or planes of less than 32 pixels.
    """
    checked_pair(image, reference)
    if image.shape[1] not in (1, 3):
        raise SettingError(f"lpips: expected images of 1 or 3 channels, got {image.shape[1]}")
    if min(image.shape[2:]) < _SMALLEST:
        raise SettingError(f"lpips: expected at least {_SMALLEST} voxels along every axis, got {image.shape[2:]}")
    network = _Features(_read(Path(weights))).eval()
    return torch.stack([
        _distance(network, one[None].float().cpu(), other[None].float().cpu(), slices)
        for one, other in zip(image, reference, strict=True)
    ])  # fmt: skip


class _Features(nn.Module):
    """AlexNet's convolutions, each answer normalised over its channels (Zhang et al., section 3.2)."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self.layers = nn.ModuleList(
            nd.conv(2)(channels_in, channels_out, kernel, stride=1 if place else 4, padding=kernel // 2 if place else 2)
            for place, (channels_in, channels_out, kernel) in enumerate(_LAYERS)
        )
        for place, layer in zip(_PLACES, self.layers, strict=True):
            layer.load_state_dict({part: weights[f"features.{place}.{part}"] for part in ("weight", "bias")})

    def forward(self, planes: Tensor) -> list[Tensor]:
        """Planes `(n, 1 or 3, rows, columns)` in [0, 1] to the features of every layer."""
        colours = 2 * planes.expand(-1, 3, -1, -1) - 1
        x = (colours - nd.per_channel(torch.tensor(_SHIFT), colours)) / nd.per_channel(torch.tensor(_SCALE), colours)
        answers = []
        for place, layer in enumerate(self.layers):
            if place in _POOLED:
                x = nd.max_pool(x, (3, 3), stride=(2, 2))
            x = layer(x).relu()
            answers.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return answers


@torch.no_grad()
def _distance(network: _Features, image: Tensor, reference: Tensor, slices: int) -> Tensor:
    """Mean over the planes of one image, a scalar in float64."""
    mixing = _mixing()
    found = []
    for ours, theirs in zip(cuts(image, slices), cuts(reference, slices), strict=True):
        for first, second in zip(ours.split(_PLANES_AT_ONCE), theirs.split(_PLANES_AT_ONCE), strict=True):
            total = torch.zeros(len(first), dtype=torch.float64)
            for one, other, weight in zip(network(first), network(second), mixing, strict=True):
                total += ((one - other).square() * weight).sum(dim=1).flatten(1).mean(dim=1)
            found.append(total)
    return torch.cat(found).mean()


def _mixing() -> list[Tensor]:
    """The learned weight of every channel of every layer, `(1, C, 1, 1)`."""
    import torchmetrics.functional.image as functional

    assert functional.__file__ is not None
    published = torch.load(
        Path(functional.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True
    )
    return [published[f"lin{layer}.model.1.weight"] for layer in range(len(_LAYERS))]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(path, "no such file", "LPIPS needs the weights of AlexNet; nothing is downloaded")
    fault = "expected a state dict of AlexNet, tensors alone"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        raise FileError(path, fault) from error
    for place, (channels_in, channels_out, kernel) in zip(_PLACES, _LAYERS, strict=True):
        weight = content.get(f"features.{place}.weight") if isinstance(content, Mapping) else None
        bias = content.get(f"features.{place}.bias") if isinstance(content, Mapping) else None
        expected = (channels_out, channels_in, kernel, kernel)
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or tuple(weight.shape) != expected:
            raise FileError(path, fault)
    return dict(content)

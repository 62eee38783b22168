"""The names that the document on Fast-DDPM for volumes uses, on our networks, samplers and datasets.

A script written after it runs with these imports:

    from voxelry.interop.legacy.translate import BRATS, Model, sg_generalized_steps_3d, transform_3d_augment

New code is better off with `voxelry.models.unet.UNet`, `voxelry.tasks.translate` and `voxelry.data.pairs`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from voxelry.core.rank import per_axis
from voxelry.core.space import Space
from voxelry.data.layouts.find import find_pairs
from voxelry.data.pairs import PairDataset
from voxelry.data.preprocess import Preprocess, move
from voxelry.data.sample import Sample
from voxelry.diffusion.samplers import Step, ddim
from voxelry.diffusion.schedules import Schedule
from voxelry.interop.weights import fast_ddpm
from voxelry.metrics.original_images import original_scores as calculate_3d_metrics
from voxelry.models.unet import UNet
from voxelry.nn.attention import FullAttention
from voxelry.nn.blocks import PreNormBlock
from voxelry.nn.conv import AverageDown, LinearConvUp, LinearUp, StridedDown

__all__ = [
    "BRATS",
    "AttnBlock3D",
    "Downsample3D",
    "Model",
    "ResnetBlock3D",
    "Upsample3D",
    "calculate_3d_metrics",
    "extract_3d_patches",
    "resize_3d",
    "sg_generalized_steps_3d",
    "transform_3d_augment",
]

_STRIDE = (2, 2, 2)
_USUAL = {"num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0, "resamp_with_conv": True, "image_size": 256}


def Model(config: Any) -> UNet:
    """The network of a configuration, in 3-D where `data` has a `depth`; call it as `model(x, t)`.

    Args:
        config: what a YAML file holds, as mappings or as objects with attributes.
    """
    content = _mapping(config)
    given = {**_USUAL, **content["model"], "image_size": content["data"].get("image_size", 256)}
    return UNet(ndim=3 if "depth" in content["data"] else 2, **fast_ddpm.settings(given, {}))


def _mapping(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {key: _mapping(value) for key, value in config.items()}
    return {key: _mapping(value) for key, value in vars(config).items()} if hasattr(config, "__dict__") else config


def ResnetBlock3D(
    *,
    in_channels: int,
    out_channels: int | None = None,
    conv_shortcut: bool = False,
    dropout: float,
    temb_channels: int = 512,
) -> nn.Module:
    """A residual block, called as `block(x, temb)`; epsilon is 1e-6 as in the published network."""
    return PreNormBlock(
        in_channels,
        in_channels if out_channels is None else out_channels,
        ndim=3,
        embedding=temb_channels,
        groups=32,
        eps=1e-6,
        dropout=dropout,
        shortcut_kernel=3 if conv_shortcut else 1,
    )


def AttnBlock3D(in_channels: int) -> nn.Module:
    """Attention of one head among all voxels, with its residual."""
    return FullAttention(in_channels, ndim=3, heads=1, head_dim=None, bias=True, groups=32, eps=1e-6)


def Upsample3D(in_channels: int, with_conv: bool) -> nn.Module:
    """Trilinear to twice the size, and a convolution where asked."""
    return (LinearConvUp if with_conv else LinearUp)(in_channels, in_channels, ndim=3, stride=_STRIDE)


def Downsample3D(in_channels: int, with_conv: bool) -> nn.Module:
    """To half the size, by a convolution padded at the end or by means."""
    return (StridedDown if with_conv else AverageDown)(in_channels, in_channels, ndim=3, stride=_STRIDE)


@torch.no_grad()
def sg_generalized_steps_3d(
    x: Tensor, x_img: Tensor, seq: Sequence[int], model: Callable[[Tensor, Tensor], Tensor], b: Tensor, **kwargs: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """DDIM from noise, by a network that is given the condition and the image on its way.

    Args:
        x: noise, `(B, C, D, H, W)`.
        x_img: the condition, of the same size.
        seq: ascending time steps; a step that is named twice counts once.
        model: `(cat(x_img, x_t), t) -> noise`.
        b: betas of the schedule.
        kwargs: `eta`, the share of noise.

    Returns:
        The images after each step, the noise first, and the estimates of the clean image; on the CPU.
    """
    images, estimates = [x.cpu()], []

    def predict(x_t: Tensor, t: int) -> Tensor:
        return model(torch.cat([x_img, x_t], dim=1), torch.full((len(x_t),), float(t), device=x_t.device))

    def keep(step: Step) -> None:
        images.append(step.x.cpu())
        estimates.append(step.estimate.cpu())

    ddim(predict, x, Schedule(b), sorted(set(seq)), eta=float(kwargs.get("eta", 0)), callback=keep)
    return images, estimates


def transform_3d_augment(
    volume_list: Sequence[NDArray[np.floating]], split: str = "val", min_max: tuple[float, float] = (0, 1)
) -> list[Tensor]:
    """Volumes `(D, H, W)` in [0, 1] as tensors `(1, D, H, W)` in `min_max`, in training flipped alike at random."""
    volumes = [torch.from_numpy(np.ascontiguousarray(volume)).float() for volume in volume_list]
    if split == "train":
        flipped = [axis for axis in range(3) if random.random() < 0.5]
        volumes = [torch.flip(volume, dims=flipped) for volume in volumes]
    low, high = min_max
    return [(volume * (high - low) + low).unsqueeze(0) for volume in volumes]


def resize_3d(volume: NDArray[np.floating], size: Sequence[int]) -> NDArray[np.float32]:
    """A volume `(D, H, W)` in other voxels, the same field of view: linear, smoothed first where it shrinks."""
    space = Space.from_spacing(volume.shape)
    sample = Sample(torch.from_numpy(np.asarray(volume, dtype=np.float32))[None], space, "volume")
    return move(sample, space.resize(size)).image[0].numpy()


def extract_3d_patches(
    volume: NDArray[Any], patch_size: int | Sequence[int] = (64, 64, 64), stride: int | Sequence[int] = 32
) -> list[NDArray[Any]]:
    """Overlapping windows of `(..., D, H, W)`, in order of their corners; the last ones end where the volume does."""
    wanted = per_axis(patch_size, 3, "patch_size")
    steps = per_axis(stride, 3, "stride")
    shape = volume.shape[-3:]
    corners = product(*(_corners(*each) for each in zip(shape, wanted, steps, strict=True)))
    found = []
    for corner in corners:
        window = tuple(slice(start, start + size) for start, size in zip(corner, wanted, strict=True))
        found.append(volume[..., window[0], window[1], window[2]])
    return found


def _corners(length: int, size: int, step: int) -> Iterator[int]:
    yield from range(0, max(length - size, 0), step)
    yield max(length - size, 0)


class BRATS(torch.utils.data.Dataset[dict[str, Any]]):
    """Pairs `A/NAME.npy` and `B/NAME.npy` in [-1, 1] as `{"FD": target, "LD": condition, "case_name"}`.

    Args:
        dataroot: the folder.
        img_size: rows and columns.
        split: in `train` both are flipped alike at random.
        depth: planes; None for images.

    Raises:
        FileError, DataError: files that can't be read, or values beyond [-1, 1].
    """

    def __init__(self, dataroot: str | PathLike[str], img_size: int, split: str = "train", depth: int | None = None):
        size = [img_size, img_size] if depth is None else [depth, img_size, img_size]
        prepare = Preprocess(image_size=size, normalise="window", window=(-1.0, 1.0), outside="error")
        self.split = split
        self._pairs = PairDataset(find_pairs(dataroot, "ab"), preprocess=prepare)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Case `index`; tensors `(1, *spatial)` in [-1, 1]."""
        sample = self._pairs[index]
        assert sample.target is not None
        both = [2 * sample.image - 1, 2 * sample.target - 1]
        if self.split == "train" and sample.ndim == 3:  # as the original, which flips no images of this set
            flipped = [axis for axis in (1, 2, 3) if random.random() < 0.5]
            both = [torch.flip(image, dims=flipped) for image in both]
        return {"FD": both[1], "LD": both[0], "case_name": sample.name}

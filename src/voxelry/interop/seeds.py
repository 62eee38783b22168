"""The names that the original projects' own examples use, on our networks, diffusion and datasets.

A script written for them runs after its import lines are changed to this module:

    from voxelry.interop.seeds import DDPM, Unet, Volume3DDiffusionDataset

New code is better off with `voxelry.models.unet.UNet`, `voxelry.tasks.pretrain` and
`voxelry.data.dataset.VolumeDataset`, whose arguments mean what they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.io import Image, read_image
from voxelry.data.layouts import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.diffusion import samplers
from voxelry.diffusion.objectives import Objective, convert, noise_like, q_sample
from voxelry.diffusion.schedules import Schedule
from voxelry.models.unet import UNet

__all__ = ["DDPM", "Unet", "Volume3DDiffusionDataset"]


def Unet(
    dim: int,
    out_dim: int | None = None,
    dim_mults: Sequence[int] = (1, 2, 4, 8),
    channels: int = 1,
    self_condition: bool = False,
    resnet_block_groups: int = 4,
    att_heads: int = 4,
    att_res: int = 32,
    is_3d: bool = False,
) -> UNet:
    """The original's network as a `UNet`; call it as `model(x)`, `model(x, time)` or `model(x, time, condition)`.

    Args:
        dim: channels of the finest level.
        out_dim: output channels; by default as many as `channels`.
        dim_mults: channels of the levels as multiples of `dim`.
        channels: input channels.
        self_condition: take an earlier estimate as well, of as many channels as the output.
        resnet_block_groups: groups of the normalisations.
        att_heads: attention heads.
        att_res: channels of an attention head (no resolution, whatever the name says).
        is_3d: `(B, C, D, H, W)` instead of `(B, C, H, W)`.
    """
    return UNet(
        ndim=3 if is_3d else 2,
        in_channels=channels,
        out_channels=channels if out_dim is None else out_dim,
        width=dim,
        multipliers=list(dim_mults),
        self_condition=self_condition,
        groups=resnet_block_groups,
        heads=att_heads,
        head_dim=att_res,
    )


class DDPM(nn.Module):
    """The original's pretraining model: a network and its diffusion.

    Args:
        image_size: voxels along each axis; it also sets the network's width, as it did there.
        channels: of the images.
        device: where the network is put.
        is_3d: volumes instead of images.
        timesteps, schedule, linear_start, linear_end: of the noise.
        channel_mults, attn_res, num_head_channels, res_blocks, self_condition: the keys of the original's
            configuration: multipliers, channels of a head, heads, normalisation groups.

    Raises:
        SettingError: `device` is a GPU that is not there.
    """

    def __init__(
        self,
        image_size: int = 256,
        channels: int = 1,
        device: str | torch.device = "cpu",
        is_3d: bool = False,
        *,
        timesteps: int = 500,
        schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 0.02,
        channel_mults: Sequence[int] = (1, 2, 4, 8),
        attn_res: int = 32,
        num_head_channels: int = 4,
        res_blocks: int = 4,
        self_condition: bool = True,
    ):
        super().__init__()
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise SettingError(f"device: {device} asked for, but there is no GPU; use device='cpu'")
        self.image_size, self.channels, self.is_3d = image_size, channels, is_3d
        self.schedule = Schedule.from_name(schedule, steps=timesteps, start=linear_start, end=linear_end)
        self.model = Unet(
            dim=image_size,
            dim_mults=channel_mults,
            channels=channels,
            self_condition=self_condition,
            resnet_block_groups=res_blocks,
            att_heads=num_head_channels,
            att_res=attn_res,
            is_3d=is_3d,
        ).to(self.device)

    def sample_timesteps(self, n: int) -> Tensor:
        """Random time steps in `[1, timesteps)`, `(n,)`."""
        return torch.randint(1, len(self.schedule), (n,), device=self.device)

    def noise_images(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, C, *spatial)` at steps `t` `(B,)`, and the noise that was added."""
        noise = noise_like(x)
        return q_sample(x, t, noise, self.schedule), noise

    def p_losses(self, x: Tensor, t: Tensor, loss_type: str = "l1") -> Tensor:
        """Loss of the predicted noise, a scalar; `loss_type` is `l1`, `l2` or `huber`.

        With self-conditioning every second batch is given the network's own estimate; the original gave zeros.
        """
        noised, noise = self.noise_images(x, t)
        estimate = None
        if self.model.condition_channels and torch.rand(()) < 0.5:
            with torch.no_grad():
                estimate = convert(self.model(noised, t), noised, t, self.schedule, "epsilon", "x0")
        objective = Objective(prediction="epsilon", loss=loss_type)
        return objective.errors(self.model(noised, t, estimate), noise, t, self.schedule).mean()

    @torch.no_grad()
    def sample(self, n: int = 1) -> Tensor:
        """New images by ancestral sampling, `(n, C, *spatial)`."""
        shape = (n, self.channels, *[self.image_size] * self.model.ndim)
        start = torch.randn(shape, device=self.device)

        def predict(x: Tensor, t: int, estimate: Tensor | None = None) -> Tensor:
            return self.model(x, torch.full((n,), t, device=self.device), estimate)

        return samplers.ddpm(
            predict,
            start,
            self.schedule,
            range(len(self.schedule)),
            self_condition=bool(self.model.condition_channels),
        )


class Volume3DDiffusionDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Volumes for pretraining, as `{"name", "image"}` with `image` `(C, D, H, W)` in [0, 1].

    A subclass may override `read_volume(path)`, which returns such a tensor.

    Args:
        root_dir: folder with `volumes/`.
        channels: expected channels.
        volume_size: voxels along each axis, one number or three.
        transform: called on the image.
        phase: `train` for the first 80 % of the sorted files, `test` for the rest, `all` for all of them.
        file_extension: only files that end so; None takes every format that is read.

    Raises:
        SettingError: an unknown phase.
    """

    def __init__(
        self,
        root_dir: str | PathLike[str],
        channels: int = 1,
        volume_size: int | Sequence[int] = 64,
        transform: Callable[[Tensor], Tensor] | None = None,
        phase: str = "train",
        file_extension: str | None = None,
    ):
        if phase not in ("train", "test", "all"):
            raise SettingError(f"phase: expected train, test or all, got {phase!r}")
        cases = find_cases(root_dir, "volumes")
        if file_extension is not None:
            cases = [case for case in cases if case.image.name.endswith(file_extension)]
        split = int(len(cases) * 0.8)
        self.cases = {"train": cases[:split], "test": cases[split:], "all": cases}[phase]
        self.channels, self.transform = channels, transform
        self._dataset = _Reading(self, volume_size)

    def read_volume(self, volume_path: Path) -> Tensor | Image:
        """The pixels of a file: the method to override."""
        return read_image(volume_path)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Case `index`.

        Raises:
            FileError, DataError: the file can't be read or has other channels.
        """
        sample = self._dataset[index]
        if sample.image.shape[0] != self.channels:
            raise SettingError(f"{sample.source}: {sample.image.shape[0]} channels, expected channels={self.channels}")
        image = sample.image if self.transform is None else self.transform(sample.image)
        return {"name": sample.name, "image": image}


class _Reading(VolumeDataset):
    """Our dataset, reading through the original's method."""

    def __init__(self, owner: Volume3DDiffusionDataset, volume_size: int | Sequence[int]):
        size = list(volume_size) if isinstance(volume_size, Sequence) else volume_size
        super().__init__(owner.cases, preprocess=Preprocess(image_size=size, normalise="minmax"), need=())
        self.owner = owner

    def read_volume(self, path: Path) -> Tensor | Image:
        return self.owner.read_volume(path)

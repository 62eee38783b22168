"""The names that the original projects' own examples use, on our networks, diffusion and datasets.

A script written for them runs after its import lines are changed to this module:

    from voxelry.interop.legacy.originals import DDPM, Unet, Volume3DDiffusionDataset

New code is better off with `voxelry.models.unet.UNet`, `voxelry.tasks.pretrain` and
`voxelry.data.dataset.VolumeDataset`, whose arguments mean what they are called.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.diffusion import samplers
from voxelry.diffusion.objectives import Objective, convert, noise_like, q_sample
from voxelry.diffusion.schedules import Schedule
from voxelry.io import Image, read_image
from voxelry.models.unet import UNet

__all__ = ["DDPM", "Unet", "Volume3DDiffusionDataset"]

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_EMA = 0.995


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
    """The original's pretraining model: a network, its diffusion and its optimizer.

    Args:
        image_size: voxels along each axis; it also sets the network's width, as it did there.
        channels: of the images.
        device: where the network is put.
        lr, optimizer: `adam`, `adamw` or `sgd` at that rate, kept as the attribute `optimizer`.
        timesteps, beta_schedule, beta_start, beta_end: of the noise: `linear`, `cosine`, `quadratic` or `sigmoid`.
        unet_channels: multipliers of the levels.
        unet_self_condition: feed an earlier estimate back.
        unet_att_res, unet_att_heads: channels of an attention head, and heads.
        unet_res_blocks: groups of the normalisations.
        use_ema: keep averaged weights (decay 0.995) in `ema_model`, brought up to date by `update_ema`.
        is_3d: volumes instead of images.

    Raises:
        SettingError: an unknown optimizer or schedule, or `device` is a GPU that is not there.
    """

    def __init__(
        self,
        image_size: int = 256,
        channels: int = 3,
        device: str | torch.device = "cuda",
        lr: float = 1e-4,
        optimizer: str = "adam",
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        unet_channels: Sequence[int] = (1, 2, 4, 8),
        unet_self_condition: bool = True,
        unet_att_res: int = 32,
        unet_att_heads: int = 4,
        unet_res_blocks: int = 4,
        use_ema: bool = False,
        is_3d: bool = False,
    ):
        super().__init__()
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise SettingError(f"device: {device} asked for, but there is no GPU; use device='cpu'")
        check_choice("optimizer", optimizer, _OPTIMIZERS)
        self.image_size, self.channels, self.is_3d = image_size, channels, is_3d
        self.schedule = Schedule.from_name(beta_schedule, steps=timesteps, start=beta_start, end=beta_end)
        self.model = Unet(
            dim=image_size,
            dim_mults=unet_channels,
            channels=channels,
            self_condition=unet_self_condition,
            resnet_block_groups=unet_res_blocks,
            att_heads=unet_att_heads,
            att_res=unet_att_res,
            is_3d=is_3d,
        ).to(self.device)
        self.optimizer = _OPTIMIZERS[optimizer](self.model.parameters(), lr=lr)
        self.ema_model = copy.deepcopy(self.model).eval().requires_grad_(False) if use_ema else None

    @torch.no_grad()
    def update_ema(self) -> None:
        """Bring the averaged weights a step nearer to the network's; nothing without `use_ema`."""
        if self.ema_model is not None:
            for averaged, own in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(own, 1 - _EMA)

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
    def sample(
        self, model: nn.Module, batch_size: int, timesteps: int | None = None, x_cond: Tensor | None = None
    ) -> Tensor:
        """New images by ancestral sampling, `(batch_size, C, *spatial)`.

        Args:
            model: `ddpm.model` or `ddpm.ema_model`.
            batch_size: how many.
            timesteps: to begin at; None for all of them.
            x_cond: images `(batch_size, C, *spatial)` to begin at, with as much noise as that step has; None for noise.
        """
        last = len(self.schedule) if timesteps is None else timesteps
        shape = (batch_size, self.channels, *[self.image_size] * self.model.ndim)
        start = torch.randn(shape, device=self.device)
        if x_cond is not None:
            steps = torch.full((len(x_cond),), last - 1, device=self.device)
            start = self.noise_images(x_cond.to(self.device), steps)[0]

        def predict(x: Tensor, t: int, estimate: Tensor | None = None) -> Tensor:
            return model(x, torch.full((len(x),), t, device=self.device), estimate)

        return samplers.ddpm(
            predict,
            start,
            self.schedule,
            range(1, last),  # 0 is never trained
            variance="large",
            self_condition=bool(self.model.condition_channels),
        )


class Volume3DDiffusionDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Volumes for pretraining, as `{"name", "image"}` with `image` `(C, D, H, W)` in [0, 1].

    A subclass may override `read_volume(path)`, which returns such a tensor; what is in [0, 1] stays as it is.

    Args:
        root_dir: folder with `volumes/`.
        channels: expected channels.
        volume_size: voxels along each axis, one number or three.
        transform: called on the image.
        phase: `train` for the first 80 % of the sorted files, `test` for the rest, `all` for all of them.
        file_extension: only files that end so; None takes every format that is read, and every file at all where a
            subclass reads them itself.

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
        check_choice("phase", phase, ("train", "test", "all"))
        reads_own = type(self).read_volume is not Volume3DDiffusionDataset.read_volume
        cases = find_cases(root_dir, "volumes", suffix=(file_extension or "") if reads_own else None)
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

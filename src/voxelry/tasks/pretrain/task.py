"""Denoising-diffusion pretraining as a task: noise, loss, samples, held-out figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import settle
from voxelry.data.sample import Batch
from voxelry.diffusion import samplers
from voxelry.diffusion.objectives import Objective, convert, noise_like, q_sample, sample_times
from voxelry.diffusion.plan import ScheduleSettings
from voxelry.diffusion.schedules import timesteps
from voxelry.metrics import images as image_metrics
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.metrics.distribution import sliced_wasserstein
from voxelry.tasks.base import Row, Task
from voxelry.tasks.pretrain.predict import PretrainPrediction
from voxelry.tasks.pretrain.targets import Noised, Range, Rescale, band_edges, band_of, fixed_noise, noised

__all__ = ["PretrainTask"]


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(ScheduleSettings):
    """A diffusion and how it is learned.

    Attributes:
        objective: what the network answers: `epsilon`, `x0` or `v`.
        loss_type: `l2`, `l1` or `huber`.
        weighting: of the time steps, see `diffusion.objectives.Objective`; None for none.
        self_condition: whether the network is given its own estimate of the clean image; None asks
            `network.self_condition`.
        clip_samples: keep the estimates within the diffusion range while sampling.
        sampler: `ddim`, `ddpm`, `dpm_solver` or `heun`.
        sample_steps: how many time steps the sampler visits.
        time_bands: into how many equal bands of time the losses are split for the log.
        reconstruct_from: the time step a held-out image is noised to before it is denoised again; None for the
            middle of the schedule.
        reconstruct_steps: how many time steps that takes, always by DDIM without noise: the same every time.
        data_range: low and high of the images as they arrive.
        diffusion_range: where these are mapped to before noise is added; the original's is (0, 1).
        stratified: spread the time steps of a batch evenly over the schedule.
        seed: of the noise of held-out images.
    """

    schedule: str = "linear"
    n_timestep: int = 500
    spacing: str | Sequence[int] = "uniform"
    objective: str = "epsilon"
    loss_type: str = "l2"
    weighting: str | None = None
    self_condition: bool | None = None
    clip_samples: bool = True
    sampler: str = "ddim"
    sample_steps: int = 50
    time_bands: int = 4
    reconstruct_from: int | None = None
    reconstruct_steps: int = 10
    data_range: Range = (0.0, 1.0)
    diffusion_range: Range = (-1.0, 1.0)
    stratified: bool = True
    seed: int = 0


class PretrainTask(Task[Batch, PretrainPrediction]):
    """A U-Net learns to denoise images.

    Args:
        network: called as `network(x, t)`, or `network(x, t, condition=estimate)` when it is self-conditioned, with
            `x` `(B, C, *spatial)` and `t` `(B,)`; answers `(B, C, *spatial)`.

    Raises:
        SettingError: an unknown name, or a number that can't be.
    """

    Settings = PretrainSettings

    name = "pretrain"
    monitor = "val_loss"
    higher_is_better = False

    def __init__(self, network: nn.Module, **settings: Any):
        super().__init__()
        own = self._settings = settle(PretrainSettings, settings)
        self.network = network
        self.schedule = own.make_schedule()
        self.objective = Objective(own.objective, own.loss_type, own.weighting)
        has_condition = bool(getattr(network, "self_condition", False))
        self.self_condition = has_condition if own.self_condition is None else own.self_condition
        if self.self_condition and not has_condition:
            raise SettingError("self_condition: the network takes no estimate; build it with self_condition=true")
        check_choice("sampler", own.sampler, samplers.SAMPLERS)
        self.rescale = Rescale(own.data_range, own.diffusion_range)
        self.sampler = own.sampler
        self.sampler_settings: dict[str, Any] = {
            "objective": own.objective,
            "clip": self.rescale.diffusion if own.clip_samples else None,
            "self_condition": self.self_condition,
        }
        self.eta = own.eta
        self.spacing = own.spacing
        self.sample_steps = timesteps(own.spacing, own.n_timestep, min(own.sample_steps, own.n_timestep))
        self.edges = band_edges(own.n_timestep, own.time_bands)
        self.t_start = own.n_timestep // 2 if own.reconstruct_from is None else own.reconstruct_from
        if not 0 <= self.t_start < own.n_timestep:
            raise SettingError(f"reconstruct_from: expected 0 to {own.n_timestep - 1}, got {own.reconstruct_from}")
        count = min(own.reconstruct_steps, self.t_start + 1)
        self.reconstruct_steps = timesteps("uniform", self.t_start + 1, count)
        self.stratified = own.stratified
        self.seed = own.seed
        self._settings = replace(
            own,
            self_condition=self.self_condition,
            data_range=self.rescale.data,
            diffusion_range=self.rescale.diffusion,
        )

    @property
    def calls(self) -> int:
        """The steps of a reconstruction and the bands of the held-out loss."""
        return len(self.reconstruct_steps) + len(self.edges) - 1

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean loss of a batch at random time steps, and of each time-step band that the batch touches."""
        x0 = self.rescale.forward(batch.image)
        t = sample_times(len(x0), self.schedule.steps, stratified=self.stratified)
        step = noised(x0, t, noise_like(x0), self.objective, self.schedule)
        # half of the time, as in Chen et al. 2022, section 3.2; one coin for the batch spares the other half a pass
        with_estimate = self.self_condition and bool(torch.rand(()) < 0.5)
        errors = self._errors(step, with_estimate=with_estimate)
        losses = {"loss": errors.mean()}
        bands = band_of(t, self.edges)
        for band in bands.unique().tolist():
            members = (bands == band).nonzero().flatten().to(errors.device)
            losses[f"loss_band_{band}"] = errors.detach()[members].mean()
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[PretrainPrediction]:
        """Noise each image to `reconstruct_from` and denoise it; the same result for a case every time."""
        x0 = self.rescale.forward(batch.image)
        noise = fixed_noise(batch.names, x0, seed=self.seed)
        losses = self._held_out_losses(x0, noise)
        x_t, steps = samplers.start_from(x0, self.t_start, self.schedule, self.reconstruct_steps, noise=noise)
        denoised = samplers.ddim(self._ask, x_t, self.schedule, steps, **self.sampler_settings)
        seen, restored = self.rescale.inverse(x_t).cpu(), self.rescale.inverse(denoised).cpu()
        return [
            PretrainPrediction(
                name=name,
                image=batch.image[index].cpu(),
                noised=seen[index],
                reconstruction=restored[index],
                t_start=self.t_start,
                losses=tuple(losses[index].tolist()),
                space=batch.spaces[index],
                source=batch.sources[index] if batch.sources else "",
            )
            for index, name in enumerate(batch.names)
        ]

    def metrics(self, predictions: Sequence[PretrainPrediction], batch: Batch, wanted: Wanted = ALL) -> list[Row]:
        """Held-out loss, whole and per band, and SSIM, PSNR (dB), MSE and MAE of the reconstruction, per case."""
        low, high = self.rescale.data
        rows: list[Row] = []
        for prediction in predictions:
            pair = prediction.reconstruction[None].float(), prediction.image[None].float()
            row: Row = {"name": prediction.name, "val_loss": float(np.mean(prediction.losses))}
            row |= {f"val_loss_band_{band}": loss for band, loss in enumerate(prediction.losses)}
            row |= {
                "ssim": float(image_metrics.ssim(*pair, data_range=high - low)),
                "psnr": float(image_metrics.psnr(*pair, data_range=high - low)),
                "mse": float(image_metrics.mse(*pair)),
                "mae": float(image_metrics.mae(*pair)),
            }
            rows.append(row)
        return rows

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """Mean of every number over the cases where it is finite, NaN where it nowhere is."""
        names = [name for name in (rows[0] if rows else {}) if name != "name"]
        means = {}
        for name in names:
            values = [float(row[name]) for row in rows]
            finite = [value for value in values if math.isfinite(value)]
            means[name] = float(np.mean(finite)) if finite else math.nan
        return means or {self.monitor: math.nan}

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold."""
        return [
            self.monitor,
            *(f"val_loss_band_{band}" for band in range(len(self.edges) - 1)),
            "ssim",
            "psnr",
            "mse",
            "mae",
        ]

    @torch.no_grad()
    def sample(
        self,
        count: int,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        batch_size: int = 1,
        callback: samplers.Callback | None = None,
    ) -> Tensor:
        """Draw new images, `(count, C, *shape)` on the CPU, in the data's range of values.

        Args:
            count: how many.
            shape: channels and spatial shape `(C, *spatial)`.
            generator: on the CPU, for a result that repeats, whatever the batch size where the sampler draws no
                noise of its own; torch's own when None.
            batch_size: how many at a time.
            callback: called after each step of each batch.
        """
        noise = torch.randn((count, *shape), generator=generator)
        if count == 0:
            return noise
        drawn = [
            self.rescale.inverse(self._sample(part.to(self._device), self.sample_steps, generator, callback)).cpu()
            for part in noise.split(max(batch_size, 1))
        ]
        return torch.cat(drawn)

    def compare(self, samples: Tensor, images: Tensor) -> dict[str, float]:
        """How far samples are from data as a whole, see `metrics.distribution.sliced_wasserstein`.

        Args:
            samples: `(N, C, *spatial)`, from `sample`.
            images: `(M, C, *spatial)`, held out.

        Returns:
            `swd` and its levels; and `swd_floor`, the distance between two halves of the images, which samples as
            good as data would reach (NaN for a single image).
        """
        distances = sliced_wasserstein(samples, images, seed=self.seed)
        halves = images[::2], images[1::2]
        floor = sliced_wasserstein(*halves, seed=self.seed)["swd"] if len(images) > 1 else math.nan
        return distances | {"swd_floor": floor}

    @torch.no_grad()
    def noising_process(self, image: Tensor, steps: Sequence[int] | int = 6) -> tuple[list[int], NDArray[np.float32]]:
        """One image as it drowns in noise, for a figure.

        Args:
            image: `(C, *spatial)` in the data's range.
            steps: the time steps to show, or how many, evenly spread.

        Returns:
            The time steps, -1 for the clean image, which comes first; and the images, `(len(steps) + 1, C,
            *spatial)`, in the data's range of values, not clipped to it.
        """
        shown = timesteps("uniform", self.schedule.steps, steps) if isinstance(steps, int) else [int(t) for t in steps]
        x0 = self.rescale.forward(image[None].float().cpu())
        noise = fixed_noise(["noising process"], x0, seed=self.seed)
        stages = [q_sample(x0, t, noise, self.schedule) for t in shown]
        return [-1, *shown], self.rescale.inverse(torch.cat([x0, *stages])).numpy()

    @torch.no_grad()
    def denoising_process(
        self, shape: Sequence[int], frames: int = 6, *, generator: torch.Generator | None = None
    ) -> tuple[list[int], NDArray[np.float32]]:
        """One sample as it comes out of the noise, for a figure.

        Args:
            shape: channels and spatial shape `(C, *spatial)`.
            frames: how many stages, the starting noise and the result included.
            generator: as for `sample`.

        Returns:
            The time step of each stage, -1 for the result, which comes last; and the images, `(frames, C,
            *spatial)`, in the data's range of values. Fewer where the sampler has fewer steps.
        """
        stages: list[tuple[int, Tensor]] = []
        start = torch.randn((1, *shape), generator=generator)
        stages.append((self.sample_steps[-1], start))
        self._sample(
            start.to(self._device),
            self.sample_steps,
            generator,
            lambda step: stages.append((step.t_next, step.x.cpu())),
        )
        last = len(stages) - 1
        shown = [stages[index] for index in timesteps("uniform", last + 1, min(max(frames, 2), last + 1))]
        return [t for t, _ in shown], self.rescale.inverse(torch.cat([x for _, x in shown])).numpy()

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    def _answer(self, x_t: Tensor, t: Tensor, estimate: Tensor | None) -> Tensor:
        t = t.to(x_t.device)
        if not self.self_condition:
            return self.network(x_t, t)
        return self.network(x_t, t, condition=estimate)

    def _ask(self, x_t: Tensor, t: int, estimate: Tensor | None = None) -> Tensor:
        """The network as samplers call it: one time step for all."""
        return self._answer(x_t, torch.full((len(x_t),), t), estimate)

    def _errors(self, step: Noised, *, with_estimate: bool) -> Tensor:
        """Loss per sample, `(B,)`, with the network's own estimate as a second input or without."""
        estimate = None
        if with_estimate:
            with torch.no_grad():
                first = self._answer(step.x_t, step.t, None).to(step.x_t.dtype)
                estimate = convert(first, step.x_t, step.t, self.schedule, self.objective.prediction, "x0")
                estimate = estimate if self._clip is None else estimate.clamp(*self._clip)
        output = self._answer(step.x_t, step.t, estimate)
        return self.objective.errors(output, step.target, step.t, self.schedule)

    @property
    def _clip(self) -> Range | None:
        clip: Range | None = self.sampler_settings["clip"]
        return clip

    def _held_out_losses(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Loss of each sample at the middle of each band, `(B, bands)`; with an estimate where that is used."""
        columns = []
        for low, high in zip(self.edges[:-1], self.edges[1:], strict=True):
            t = torch.full((len(x0),), (low + high) // 2)
            step = noised(x0, t, noise, self.objective, self.schedule)
            columns.append(self._errors(step, with_estimate=self.self_condition))
        return torch.stack(columns, dim=1)

    def _sample(
        self,
        x: Tensor,
        steps: Sequence[int],
        generator: torch.Generator | None,
        callback: samplers.Callback | None = None,
    ) -> Tensor:
        own = {"eta": self.eta} if self.sampler == "ddim" else {}
        return samplers.sample(
            self.sampler,
            self._ask,
            x,
            self.schedule,
            steps,
            generator=generator,
            callback=callback,
            **self.sampler_settings,
            **own,
        )

"""Mode 2 of the reconstruction: all the organs that a slice leaves possible, instead of their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import own_fields, settle
from voxelry.core.space import Space
from voxelry.data.slices.case import SliceBatch, SliceCase
from voxelry.diffusion.flow import (
    FLOW_SAMPLERS,
    TIME_DISTRIBUTIONS,
    draw_times,
    flow_times,
    interpolate,
    velocity,
)
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.models.shape import Prompt, ShapeFlow, ShapeNet, ShapeOutput
from voxelry.tasks.base import Row
from voxelry.tasks.reconstruct.baselines import dice_of
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.spread import SPREAD_METRICS, HypothesisCalibration, spread_metrics
from voxelry.tasks.reconstruct.targets import Targets, make_targets
from voxelry.tasks.reconstruct.task import ReconstructSettings, ReconstructTask

__all__ = ["ReconstructFlowTask"]

CODED = ("occupancy", "overlap", "sdf", "eikonal")
"""Losses of a shape that came through the autoencoder; their weights are those of the answer's."""

_WITHOUT_FLOW = "without_flow_dice"


@dataclass(frozen=True, kw_only=True)
class ReconstructFlowSettings(ReconstructSettings):
    """How shapes are drawn from slices.

    With `recentre` and `mirror` of `ReconstructSettings` hypotheses are drawn from the looks in turn.

    Attributes:
        autoencoder_share: of the training, for the autoencoder.
        divergence: weight of the latents' Kullback-Leibler divergence; 0 for an autoencoder without noise.
        blur: noise on the latents that the decoder learns from in the second part, in deviations: a flow doesn't
            meet them exactly.
        flow: weight of the flow's loss.
        draws: times and noises that the flow learns from for every prompt, which is read only once.
        times: distribution of these times; see `diffusion.flow.draw_times`.
        samples: hypotheses of a prediction.
        steps: of the sampler.
        sampler: "heun", with `2 * steps - 1` calls of the flow, or "euler", with `steps`.
        shift: where the steps are; see `diffusion.flow.flow_times`.
        noise_seed: of the hypotheses: the same prompt has the same ones in whatever company it comes.
    """

    autoencoder_share: float = 0.3
    divergence: float = 1e-3
    blur: float = 0.1
    flow: float = 1.0
    draws: int = 4
    times: str = "uniform"
    samples: int = 8
    steps: int = 4
    sampler: str = "heun"
    shift: float = 1.0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.autoencoder_share < 1:
            raise SettingError(f"autoencoder_share: expected a share from 0 to below 1, got {self.autoencoder_share}")
        _check_counts(draws=self.draws, samples=self.samples, steps=self.steps)
        for name in ("divergence", "blur", "flow"):
            if not getattr(self, name) >= 0:
                raise SettingError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        check_choice("times", self.times, TIME_DISTRIBUTIONS)
        check_choice("sampler", self.sampler, FLOW_SAMPLERS)
        flow_times(self.steps, shift=self.shift)


class ReconstructFlowTask(ReconstructTask):
    """Shapes from slices, `samples` of them for every prompt; their mean is the answer.

    One training has two parts. First the autoencoder learns the training shapes; then its encoder is kept as it is,
    and the flow learns what its latents may be for a prompt, while the decoder goes on learning. The network that
    answers without the flow, a `ShapeNet`, learns in both. How much of the training is spent is told by `on_progress`.

    Args:
        network: a `models.shape.ShapeFlow`, with the organs' mean shapes set.

    Raises:
        SettingError: a setting out of its range; the message names it.
    """

    Settings: ClassVar[type[ReconstructSettings]] = ReconstructFlowSettings

    name = "reconstruct_flow"
    draws_hypotheses = True
    network: Any  # of `network_type`
    network_type: ClassVar[type[ShapeNet]] = ShapeFlow

    def __init__(self, network: nn.Module, **settings: Any):
        own: Any = settle(self.Settings, settings)
        if not isinstance(network, self.network_type):
            raise SettingError(f"model: expected a {self.network_type.__name__}, got a {type(network).__name__}")
        super().__init__(network, **own_fields(own, ReconstructSettings))
        self.autoencoder_share, self.divergence = own.autoencoder_share, own.divergence
        self.blur, self.flow_weight = own.blur, own.flow
        self.draws, self.times, self.samples = int(own.draws), own.times, int(own.samples)
        self.sampler, self.noise_seed = own.sampler, int(own.noise_seed)
        self.steps, self.shift = int(own.steps), float(own.shift)
        self.calibration = HypothesisCalibration()
        self.share: float | None = None
        self._without = self.settings()
        self._settings = replace(own, **vars(self._settings))

    def judged(self, share: float) -> bool:
        """Once the flow learns, which comes after the autoencoder."""
        return share > self.autoencoder_share

    def on_progress(self, share: float) -> None:
        """The training has come this far: it is in the autoencoder's part, or in the flow's.

        Without being told a training stays in the first, and a prediction is taken to be of a trained network.
        """
        self.share = share

    def adapt(self, name: str, settings: Mapping[str, Any], *, head_rate: float | None = None) -> None:
        """As `ReconstructTask.adapt`: the flow of a trained network is adapted, its latents stay what they are.

        Raises:
            SettingError: the autoencoder was never trained; or see there.
        """
        network = self.network
        if not int(network.autoencoder.batches):
            raise SettingError("adapter: expected a trained flow, this one's autoencoder has seen no shape")
        super().adapt(name, settings, head_rate=head_rate)
        self.autoencoder_share = 0.0

    @property
    def calls(self) -> int:
        """The steps of each hypothesis."""
        return self.samples * (2 * self.steps - 1 if self.sampler == "heun" else self.steps)

    def training_loss(self, batch: SliceBatch) -> dict[str, Tensor]:
        """The losses of the answer, and those of the autoencoder or of the flow.

        Raises:
            DataError: the batch has no truth.
        """
        prompt = self.prompt(batch)
        network = self.network
        assert prompt.label is not None
        targets = make_targets(batch, network.prior, prompt.label, network.truncation)
        part = self._coders if self.learns_coders else self._flows
        condition = None if self.learns_coders else network.read(prompt)
        output: ShapeOutput = network(prompt) if condition is None else condition.output
        result = self._losses(output, targets, prompt)
        for name, (weight, value) in part(targets, output, prompt, condition).items():
            result[name] = value
            result["loss"] = result["loss"] + weight * value
        return result

    @property
    def learns_coders(self) -> bool:
        """Whether a training is in its first part, or begins anew without one."""
        return (self.share or 0.0) < self.autoencoder_share or not int(self.network.autoencoder.batches)

    def _coders(
        self, targets: Targets, output: ShapeOutput, prompt: Prompt, condition: Any
    ) -> dict[str, tuple[float, Tensor]]:
        """Weights and losses of the first part."""
        truth, coder = targets.sdf / targets.edge, self.network.autoencoder
        coder.observe(coder.encode(truth)[0])
        coded, divergence = coder(truth)
        return {
            "divergence": (self.divergence, divergence),
            "coded": (1.0, self._coding_loss(coded, output, targets, prompt)),
        }

    def _flows(
        self, targets: Targets, output: ShapeOutput, prompt: Prompt, condition: Any
    ) -> dict[str, tuple[float, Tensor]]:
        """Weights and losses of the second part."""
        network = self.network
        latents = network.latents(targets.sdf / targets.edge)
        coded = network.shapes(latents + self.blur * torch.randn_like(latents))
        return {
            "flow": (self.flow_weight, self._flow_loss(network, latents, condition)),
            "coded": (1.0, self._coding_loss(coded, output, targets, prompt)),
        }

    def _coding_loss(self, coded: Tensor, output: ShapeOutput, targets: Targets, prompt: Prompt) -> Tensor:
        shape = replace(output, sdf=coded)
        parts = [self.weights[name] * self._loss(name, shape, targets, prompt) for name in CODED if self.weights[name]]
        return torch.stack(parts).sum() if parts else coded.sum() * 0

    def _flow_loss(self, network: Any, latents: Tensor, condition: Any) -> Tensor:
        """Mean squared error of the correction, over times and noises drawn for every prompt."""
        if self.adapters is None:  # what isn't a weight is the base's, also in an adapter's training
            network.observe(latents, condition.estimate)
        each = condition.repeated(self.draws)
        x0 = latents.repeat_interleave(self.draws, dim=0)
        x1 = torch.randn_like(x0)
        t = draw_times(len(x0), method=self.times).to(x0)
        x_t = interpolate(x0, x1, t)
        mean, deviation = network.expected(x_t, t, each.estimate)
        wanted = (velocity(x0, x1) - mean) / deviation
        return (network.correction(x_t, t, each) - wanted).square().mean()

    @torch.no_grad()
    def predict(
        self,
        batch: SliceBatch,
        *,
        samples: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
    ) -> list[ReconstructPrediction]:
        """The mean shape for every prompt, with its hypotheses; the truth in the batch is not looked at.

        Args:
            batch: the prompts.
            samples, steps, sampler: instead of the task's own.

        Raises:
            DataError: a label that is none of the organs.
            SettingError: no samples or steps, or an unknown sampler.
        """
        own = self.samples, self.steps, self.sampler
        chosen = samples or own[0], steps or own[1], sampler or own[2]
        _check_counts(samples=own[0] if samples is None else samples, steps=own[1] if steps is None else steps)
        check_choice("sampler", chosen[2], FLOW_SAMPLERS)
        try:
            self.samples, self.steps, self.sampler = chosen
            return super().predict(batch)
        finally:
            self.samples, self.steps, self.sampler = own

    def _looks(self, batch: SliceBatch, prompt: Prompt) -> tuple[Tensor, Tensor, list[Space]]:
        self._noise = torch.Generator().manual_seed(self.noise_seed)
        looks, probability, frames = super()._looks(batch, prompt)
        return looks[: self.samples], probability, frames

    def _answer(self, batch: SliceBatch, prompt: Prompt) -> tuple[Tensor, Tensor]:
        views = (1 + self.recentre) * (1 + self.mirror)
        count = math.ceil(self.samples / views)
        condition = self.network.read(prompt)
        shapes = self._sampled(condition, count)
        return shapes * batch.edge.view(-1, 1, 1, 1, 1), condition.output.mask_logits.sigmoid()

    def _sampled(self, condition: Any, count: int) -> Tensor:
        """So many hypotheses, `(B, K, n, n, n)` edges."""
        # one by one and on the CPU, so that every device and every number of samples has the same first ones
        shape = self.network.autoencoder.latent_shape
        noise = torch.stack([torch.randn(shape, generator=self._noise) for _ in range(count)])
        times = flow_times(self.steps, shift=self.shift)
        found: Tensor = self.network.sample(condition, noise, times, sampler=self.sampler)
        return found

    def _prediction(
        self, batch: SliceBatch, place: int, looks: Tensor, probability: Tensor, frame: Space
    ) -> ReconstructPrediction:
        if self.share is not None and self.share < self.autoencoder_share:
            told = looks[:1]  # hypotheses of a flow that has learned nothing yet are only costly to measure
        else:
            told = torch.cat((looks[:1], self.calibration(looks[1:], looks[0])))
        return super()._prediction(batch, place, told, probability, frame)

    def without_flow(self) -> ReconstructTask:
        """The task of the same network that answers once, by what the flow begins with."""
        task = ReconstructTask(self.network, **{**self._without, "baseline_shapes": 0})
        return task.train(self.training)

    def calibrate(self, predictions: Sequence[ReconstructPrediction], samples: Sequence[Any]) -> None:
        """Set by how much hypotheses differ from their mean; see `spread.HypothesisCalibration`.

        Args:
            predictions: of held-out cases.
            samples: those `SliceCase`s, with truth.
        """
        cases: Sequence[SliceCase] = samples
        truths = [None if case.truth is None else case.truth.cpu().numpy().astype(bool) for case in cases]
        self.calibration.fit(predictions, truths)

    def metrics(
        self, predictions: Sequence[ReconstructPrediction], batch: SliceBatch, wanted: Wanted = ALL
    ) -> list[Row]:
        """As `ReconstructTask.metrics`, `spread.spread_metrics`, and the Dice of the answer `without_flow`.

        Raises:
            DataError: the batch has no voxels to compare with.
        """
        rows = super().metrics(predictions, batch, wanted)
        truths = [given.cpu().numpy().astype(bool) for given in batch.truths if given is not None]
        if wanted(*SPREAD_METRICS, *self._by_organ(SPREAD_METRICS)):
            for row, prediction, truth in zip(rows, predictions, truths, strict=True):
                row |= spread_metrics(prediction, truth)
        if wanted(_WITHOUT_FLOW, *self._by_organ([_WITHOUT_FLOW])):
            for row, answer, truth in zip(rows, self.without_flow().predict(batch), truths, strict=True):
                row[_WITHOUT_FLOW] = dice_of(answer.mask(), truth)
        return rows

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold."""
        further = [*SPREAD_METRICS, _WITHOUT_FLOW]
        return [*super().metric_names(chosen), *further, *self._by_organ(further)]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise SettingError(f"{name}: expected at least 1, got {value}")

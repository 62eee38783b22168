"""Translation as a task: one or more contrasts of an image to another, in few steps, beside plain regression."""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.settings import settle
from voxelry.data.sample import Batch, Sample
from voxelry.data.target_grid import TargetGrid
from voxelry.diffusion.flow import GOLDEN_RATIO
from voxelry.diffusion.inputs import Range, fixed_noise
from voxelry.diffusion.objectives import LOSSES, mean_errors, noise_like
from voxelry.diffusion.plan import ScheduleSettings
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.metrics.translation import summarise
from voxelry.models.networks import image_rank
from voxelry.tasks.base import Row, Task
from voxelry.tasks.translate.calibration import SpreadCalibration
from voxelry.tasks.translate.paths import Path, Predict, make_path
from voxelry.tasks.translate.predict import TranslatePrediction
from voxelry.tasks.translate.scores import COVERAGES, metric_names, score
from voxelry.tasks.translate.targets import RANGE, Given, given, reduced, withheld
from voxelry.tasks.translate.tiled import whole_or_tiled

__all__ = ["TranslateTask"]


@dataclass(frozen=True, kw_only=True)
class TranslateSettings(ScheduleSettings):
    """How one image is made of another.

    Attributes:
        mode: `bridge` from the condition, `flow` or `diffusion` from noise, or `regression` in one call.
        objective: what the network answers: `x0`, the target; `v`, the velocity; of a diffusion also `epsilon`.
        residual: with `x0`, the network answers the difference to the condition instead.
        steps: time steps of sampling; see `diffusion.plan.Plan` and `paths.FlowPath` for the calls that makes.
        sampler: of a diffusion one of `diffusion.samplers.SAMPLERS`, else one of `diffusion.flow.FLOW_SAMPLERS`;
            None for `ddim` and `euler`.
        train_steps: `visited`, those of sampling; `all`; or a list. Fewer steps can be asked for later where all
            that they visit were trained.
        noise_scale, start_share: of a bridge or flow, see `paths.FlowPath`.
        clip: keep estimates of the target within the range of its levels while sampling.
        loss_type: `l2`, `l1` or `huber`; always a mean over the voxels.
        conditions, targets: channels of the image and of the target.
        condition_names: what the conditions are called where a file is given for each.
        context: show the network where a window lies and what the whole image looks like, for training on patches.
        drop: chance that a contrast is withheld in training; one always stays.
        baseline: train a second network of the same settings by plain regression on the same batches, to compare.
        growing: `[share of the training, factor]` pairs: from that share on, batches are reduced by that factor.
        samples: how many are drawn for a prediction; more than one give a mean and a spread.
        spread_samples: how many are drawn in addition to tell the spread of held-out cases; below 2 for none.
        tile_size: voxels per axis of the tiles of larger images; None takes images whole.
        tile_overlap: fraction of a tile shared with its neighbour.
        target_grid: how much finer targets are than the images they are made of, `data.target_grid.TargetGrid`'s
            settings; None where both have one grid.
        data_range: lowest and highest physical value that counts for the metrics; None for each case's levels.
        seed: of the noise of predictions, which depends on it and the case's name alone.
    """

    mode: str = "bridge"
    objective: str = "x0"
    residual: bool = True
    steps: int | None = 4
    sampler: str | None = None
    train_steps: str | Sequence[float] = "visited"
    noise_scale: float = 0.25
    start_share: float = 0.5
    clip: bool = True
    loss_type: str = "l2"
    conditions: int = 1
    targets: int = 1
    condition_names: Sequence[str] | None = None
    context: bool = False
    drop: float = 0.0
    baseline: bool = True
    growing: Sequence[Sequence[float]] | None = None
    samples: int = 1
    spread_samples: int = 4
    tile_size: int | Sequence[int] | None = None
    tile_overlap: float = 0.5
    target_grid: Mapping[str, Any] | None = None
    data_range: Range | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("loss_type", self.loss_type, LOSSES)
        if not 0 <= self.drop < 1:
            raise SettingError(f"drop: expected a chance from 0 to below 1, got {self.drop}")
        if self.samples < 1:
            raise SettingError(f"samples: expected at least 1, got {self.samples}")
        names = self.condition_names
        if names is not None and len(names) != self.conditions:
            raise SettingError(f"condition_names: expected {self.conditions} of them, got {', '.join(names)}")


class TranslateTask(Task[Batch, TranslatePrediction]):
    """A network learns what an image would be in another contrast, at full dose, or between its slices.

    Args:
        network: called as `network(x, t)` with `x` `(B, channels, *spatial)`, see `targets.Given.stacked`, and `t`
            `(B,)`; answers `(B, targets, *spatial)`. It should begin at zero: then a bridge begins at the condition.

    Attributes:
        progress: share of the training that is spent, for `growing`.
        drawn: samples drawn so far, which spreads training times evenly from batch to batch; whoever goes on with an
            interrupted training sets it.
        quick: whether predictions leave out what only a report needs.

    Raises:
        SettingError: an unknown name, or a number that can't be.
    """

    Settings = TranslateSettings

    name = "translate"
    monitor = "psnr"
    higher_is_better = True
    slow = (*COVERAGES, "input_*")

    def __init__(self, network: nn.Module, **settings: Any):
        super().__init__()
        own = self._settings = settle(TranslateSettings, settings)
        self.path: Path = make_path(own.mode, vars(own) | {"clip": RANGE.diffusion if own.clip else None})
        self.regression: Path = make_path("regression", {"clip": RANGE.diffusion if own.clip else None})
        self.network = network
        self.baseline = copy.deepcopy(network) if own.baseline and own.mode != "regression" else None
        self.calibration = SpreadCalibration()
        self.growing = _growing(own.growing)
        self.mode, self.residual, self.loss_type = own.mode, own.residual, own.loss_type
        self.conditions, self.targets, self.context, self.drop = own.conditions, own.targets, own.context, own.drop
        self.condition_names = None if own.condition_names is None else tuple(own.condition_names)
        self.samples, self.spread_samples = own.samples, own.spread_samples
        self.tile_size, self.tile_overlap = own.tile_size, own.tile_overlap
        self.target_grid = None if own.target_grid is None else TargetGrid(**own.target_grid)
        self.data_range, self.seed = own.data_range, own.seed
        self.progress, self.drawn, self.quick = 0.0, 0, False
        kept = {name: value for name, value in self.path.settings().items() if name in vars(own) and name != "clip"}
        self._settings = replace(own, **kept)
        # NaN: those of the condition
        self.register_buffer("target_levels", torch.full((own.targets, 2), math.nan))

    target_levels: Tensor

    @property
    def calls(self) -> int:
        """The steps of each sample."""
        return self.samples * self.path.calls

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean loss at stratified times, and the baseline's on the same images, which is minimised with it.

        Raises:
            DataError: a batch without targets.
        """
        if batch.target is None:
            raise DataError(f"{batch.names[0]}: no target to learn from; expected pairs, or data=degraded")
        batch = self._reduced(batch)
        x0 = RANGE.forward(self._target(batch))
        known = self._given(batch, drop=self.drop if self.conditions > 1 else 0.0)
        t = self.path.draw(len(x0), self.drawn * GOLDEN_RATIO % 1)
        self.drawn += len(x0)
        noise = noise_like(x0)
        x_t = self.path.between(x0, known.start, noise, t)
        answer = self._asked(self.network, self.path, known)(x_t, self.path.clock(t).to(x_t.device))
        loss = mean_errors(answer, self.path.goal(x0, known.start, noise, t), self.loss_type).mean()
        if self.baseline is None:
            return {"loss": loss}
        guess = self._asked(self.baseline, self.regression, known)(known.start, self._beginning(known))
        compared = mean_errors(guess, x0, self.loss_type).mean()
        return {"loss": loss + compared, "loss_network": loss.detach(), "loss_baseline": compared.detach()}

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        samples: int | None = None,
    ) -> list[TranslatePrediction]:
        """Translate images; the same result for a case every time.

        One sample of a bridge begins at the condition without noise, which is the most likely path. Where the truth
        is known, the spread is told of `spread_samples`, and the baseline is asked, too.

        Args:
            batch: whole images, in [0, 1].
            steps, sampler, eta: another way to sample than the task's own, see `paths.Path.request`.
            samples: how many to draw, instead of the task's own number.

        Raises:
            SettingError: a way that the model was not trained for.
            DataError: a case without any condition.
        """
        path = self.path.request(steps, sampler, eta)
        count = self.samples if samples is None else samples
        if count < 1:
            raise SettingError(f"samples: expected at least 1, got {count}")
        if count > 1 and not path.varies:
            raise SettingError(f"samples: expected 1, as all of them would be the same, got {count}")
        known = self._given(batch)
        begin = time.perf_counter()
        translated, spread = self._sampled(path, known, batch.names, count)
        seconds = (time.perf_counter() - begin) / len(batch)
        truth = None if batch.target is None else batch.target.cpu()
        baseline = None
        if truth is not None and not self.quick and path.varies and spread is None and self.spread_samples > 1:
            spread = self._sampled(path, known, batch.names, self.spread_samples)[1]
        if truth is not None and self.baseline is not None:
            ask = self._asked(self.baseline, self.regression, known, tiled=True)
            baseline = RANGE.inverse(self.regression.walk(ask, known.start)).cpu()
        spread = None if spread is None else self.calibration(spread).cpu()
        translated = translated.cpu()
        return [
            TranslatePrediction(
                name=name,
                image=batch.image[index].cpu(),
                translated=translated[index],
                levels=self._levels(batch, index, known.present[index]),
                space=batch.spaces[index],
                spread=None if spread is None else spread[index],
                target=None if truth is None else truth[index],
                baseline=None if baseline is None else baseline[index],
                source=batch.sources[index] if batch.sources else "",
                calls=count * path.calls,
                seconds=seconds,
                samples=count,
            )
            for index, name in enumerate(batch.names)
        ]

    def metrics(self, predictions: Sequence[TranslatePrediction], batch: Batch, wanted: Wanted = ALL) -> list[Row]:
        """See `scores.score`; only names, calls and seconds where no truth is known."""
        return [
            {"name": case.name, "calls": case.calls, "seconds": case.seconds}
            if case.target is None
            else score(case, data_range=self.data_range, wanted=wanted)
            for case in predictions
        ]

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """See `metrics.translation.summarise`."""
        return {self.monitor: math.nan} | summarise(rows)

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold."""
        return metric_names(image_rank(self.network))

    def predict_to_measure(self, batch: Batch, wanted: Wanted) -> list[TranslatePrediction]:
        """As `predict`, with a spread only where `coverage_...` are wanted: it takes several samples."""
        quick, self.quick = self.quick, self.quick or not wanted(*COVERAGES)
        try:
            return self.predict(batch)
        finally:
            self.quick = quick

    def on_progress(self, share: float) -> None:
        """Remember it, for `growing`."""
        self.progress = share

    def on_batch(self, drawn: int) -> None:
        """Remember it, so that an interrupted run goes on with the very times."""
        self.drawn = drawn

    def fit_baseline(self, samples: Iterable[Sample]) -> None:
        """Remember the physical values of the target's 0 and 1: the condition's own in every case, or their mean."""
        found, shared = [], True
        for sample in samples:
            if sample.levels is None or sample.target is None:
                return
            levels = sample.levels[len(sample.image) :]
            shared &= bool(torch.isclose(levels, self._shared_levels(sample.levels, sample.present)).all())
            found.append(levels)
        if found and not shared:
            self.target_levels.copy_(torch.stack(found).mean(dim=0))

    def calibrate(self, predictions: Sequence[TranslatePrediction], samples: Sequence[Sample]) -> None:
        """Make the spread keep its promise on the validation cases."""
        self.calibration.fit(predictions)

    def _given(self, batch: Batch, drop: float = 0.0) -> Given:
        """What a batch tells, some of its contrasts withheld."""
        if batch.image.shape[1] != self.conditions:
            raise DataError(f"{batch.names[0]}: {batch.image.shape[1]} channels, expected {self.conditions} conditions")
        present = batch.present
        if drop > 0:
            whole = torch.ones(batch.image.shape[:2], dtype=torch.bool, device=batch.image.device)
            present = withheld(whole if present is None else present, drop)
        return given(batch, self.targets, tells_place=self.context, present=present)

    def _target(self, batch: Batch) -> Tensor:
        assert batch.target is not None  # asked for by the caller
        if batch.target.shape[1] != self.targets:
            raise DataError(f"{batch.names[0]}: {batch.target.shape[1]} channels of target, expected {self.targets}")
        return batch.target

    def _asked(self, network: nn.Module, path: Path, known: Given, *, tiled: bool = False) -> Predict:
        """A network as the path asks it."""
        return whole_or_tiled(
            network,
            known,
            tile_size=self.tile_size if tiled else None,
            overlap=self.tile_overlap,
            residual=self.residual and path.objective == "x0",
        )

    def _beginning(self, known: Given) -> Tensor:
        """The baseline's time, that at which a bridge begins."""
        return self.regression.clock(torch.ones(len(known.start), device=known.start.device))

    def _sampled(self, path: Path, known: Given, names: Sequence[str], count: int) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of samples in the data's range, one after the other; no spread of one."""
        ask = self._asked(self.network, path, known, tiled=True)
        mean = torch.zeros_like(known.start)
        squares = torch.zeros_like(mean) if count > 1 else None
        for number in range(count):
            own = [f"{name}/{number}" for name in names]
            still = count == 1 and not path.needs_noise
            noise = torch.zeros_like(mean) if still else fixed_noise(own, mean, seed=self.seed)
            generator = torch.Generator().manual_seed(zlib.crc32("\n".join(own).encode()))
            drawn = RANGE.inverse(path.walk(ask, path.begin(known.start, noise), generator=generator))
            change = drawn - mean
            mean += change / (number + 1)
            if squares is not None:
                squares += change * (drawn - mean)  # Welford's sums: the samples themselves need not be kept
        return mean, None if squares is None else (squares / (count - 1)).sqrt()

    def _levels(self, batch: Batch, index: int, present: Tensor) -> Tensor:
        """Physical values of 0 and 1 of all channels, `(C + C_t, 2)`; of an unknown target the training's."""
        known = batch.levels
        if known is None:
            return torch.tensor([[0.0, 1.0]]).repeat(self.conditions + self.targets, 1)
        own = known[index].cpu()
        if len(own) == self.conditions + self.targets:
            return own
        learned = self.target_levels.cpu()
        return torch.cat([own, torch.where(learned.isnan(), self._shared_levels(own, present.cpu()), learned)])

    def _shared_levels(self, levels: Tensor, present: Tensor | None) -> Tensor:
        """The conditions' levels as the target's, `(C_t, 2)`: each channel's own, else those of the first there is."""
        there = torch.ones(self.conditions, dtype=torch.bool) if present is None else present
        own, first = levels[: self.conditions], levels[int(there.int().argmax())]
        if self.conditions == self.targets:
            return torch.where(there[:, None], own, first)
        return first.expand(self.targets, 2)

    def _reduced(self, batch: Batch) -> Batch:
        """The batch at the resolution of this part of the training."""
        factor = next((factor for share, factor in reversed(self.growing) if self.progress >= share), 1)
        if factor == 1:
            return batch
        place = None if batch.context is None else reduced(batch.context, factor)
        return replace(
            batch, image=reduced(batch.image, factor), target=reduced(self._target(batch), factor), context=place
        )


def _growing(stages: Sequence[Sequence[float]] | None) -> list[tuple[float, int]]:
    """Pairs of a share of the training and a factor, ascending.

    Raises:
        SettingError: shares outside [0, 1), or factors below 1.
    """
    found = sorted((float(share), int(factor)) for share, factor in stages or ())
    if any(not 0 <= share < 1 or factor < 1 for share, factor in found):
        raise SettingError(f"growing: expected [share from 0 to 1, factor from 1 on] pairs, got {stages}")
    return found

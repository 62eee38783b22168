"""The landmark task: a network that draws one heatmap per landmark, trained and read in millimetres."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.rank import per_axis
from voxelry.core.settings import check_fraction, check_range, settle
from voxelry.data.sample import Batch, Sample
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.metrics.landmarks import MeanPosition, radial_errors
from voxelry.ops import peaks
from voxelry.ops.heatmaps import covariance, expectation
from voxelry.tasks.base import Row, Task
from voxelry.tasks.landmarks import losses
from voxelry.tasks.landmarks.asked import AskedNetwork
from voxelry.tasks.landmarks.calibration import LEVELS, Calibration
from voxelry.tasks.landmarks.ensemble import average_views, make_views, swap_order
from voxelry.tasks.landmarks.inputs import mirrored, network_input
from voxelry.tasks.landmarks.predict import LandmarkPrediction
from voxelry.tasks.landmarks.refine import coarsen, crop_batch, crop_starts, to_fine
from voxelry.tasks.landmarks.scores import metric_names, score_rows, summarise_rows
from voxelry.tasks.landmarks.targets import TARGETS, UNITS, in_unit, make_targets

__all__ = ["DECODERS", "LandmarkTask"]

DECODERS = ("local", "gaussian", "expectation", "centroid", "argmax")


@dataclass(frozen=True, kw_only=True)
class LandmarkSettings:
    """How named points are learned and read.

    Attributes:
        landmark_names: `N` names; or give `num_landmarks` and they are called `1` to `N`.
        ndim: rank of the images; by default what the network says, or 3.
        sigma: standard deviation of the target heatmaps, one number or one per axis.
        sigma_unit: of `sigma` and `window`: `mm`, or `voxel` as in the originals' files.
        loss: `ce` (softmax over the voxels of each map), `mse` or `bce`, or the original's name of one.
        target: `gaussian`, or `disc` for the original's binary targets.
        coordinate_weight: weight of the distance in mm between the soft-argmax and the truth, 0 for none.
        decoder: `local` (centre of mass around the peak), `gaussian` (fit to the peak), `expectation`
            (centre of mass of the whole map), `centroid` (the original's), `argmax` (whole voxels).
        window: half-width of the window of `local` and `gaussian`; by default 2.5 times the largest sigma.
        presence: train and report the probability that a landmark is in the image. Absent landmarks
            never count in the heatmap loss of `ce`; with `presence`, `mse` and `bce` learn an empty map for them.
        tile_size: voxels per axis; a larger image is predicted by overlapping tiles. Train with
            `presence=True` then, so that tiles without a landmark know it.
        tile_overlap: fraction of a tile shared with the next.
        refine: voxels per axis of crops around the points of the first pass, which are predicted
            again and decide; None for one pass.
        coarse: the first pass sees the image averaged over blocks of so many voxels, one number or one per axis.
        ensemble_shift, ensemble_flips: predict also the image moved by so many voxels along each axis,
            and mirrored along these axes, and average.
        swap: pairs of names that change places in a mirror image.
        input_range: where images in [0, 1] are mapped to before the network sees them; a pretrained network
            should see the range it was pretrained in (`PretrainTask`'s `diffusion_range`).
        label_classes: learn the labels of the training cases (this many classes, 0 is one of them) beside the
            points, in as many more channels; a prediction leaves them out. Points on the surface of an organ
            are found better by a network that knows the organ.
        label_weight: of that loss, a cross entropy per voxel.
        time_step: the step that a pretrained network is told, such as 0 for a clean image; None tells it none.
        borders: show the network how far each voxel is from the image's borders, in `2 * ndim` more channels in units
            of so many mm; None for not. Batches of windows or moved images then carry `borders` (`VolumeDataset`).
        original_metrics: add the original's own scores to the metrics, as `original_mse` and so on
            (`metrics.original_landmarks`), which are in pixels of the image as the network sees it.
    """

    landmark_names: Sequence[str] | None = None
    num_landmarks: int | None = None
    ndim: int | None = None
    sigma: float | Sequence[float] = 2.0
    sigma_unit: str = "mm"
    loss: str = "ce"
    target: str = "gaussian"
    coordinate_weight: float = 0.0
    decoder: str = "local"
    window: float | None = None
    presence: bool = False
    tile_size: int | Sequence[int] | None = None
    tile_overlap: float = 0.5
    refine: int | Sequence[int] | None = None
    coarse: int | Sequence[int] = 1
    ensemble_shift: int = 0
    ensemble_flips: Sequence[int] = ()
    swap: Sequence[Sequence[str]] = ()
    input_range: Sequence[float] = (-1.0, 1.0)
    time_step: int | None = None
    label_classes: int = 0
    label_weight: float = 1.0
    borders: float | None = None
    original_metrics: bool = False

    def __post_init__(self) -> None:
        check_choice("sigma_unit", self.sigma_unit, UNITS)
        check_choice("target", self.target, TARGETS)
        check_choice("decoder", self.decoder, DECODERS)
        check_fraction(self.tile_overlap, "tile_overlap")
        check_range(self.input_range, "input_range")
        if self.label_classes and self.refine is not None:
            raise SettingError("label_classes: expected 0 with refine, whose crops have no labels")
        if self.borders is not None and (self.borders <= 0 or self.refine is not None):
            raise SettingError(f"borders: expected positive mm, and none with refine, got {self.borders}")


class LandmarkTask(Task[Batch, LandmarkPrediction]):
    """Finds named points, `(B, C, *spatial) -> N` points per image in world mm.

    Args:
        network: `(B, C, *spatial) -> (B, N, *spatial)` heatmap logits; a U-Net with `out_channels=N`,
            called without a time.

    Raises:
        SettingError: a setting out of its range; the message names it.
    """

    Settings = LandmarkSettings

    name = "landmarks"
    monitor = "mre_mm"
    highest_threshold = math.inf
    mean_fractions: Tensor

    def __init__(self, network: nn.Module, **settings: Any):
        super().__init__()
        own = self._settings = settle(LandmarkSettings, settings)
        self.network = network
        self.names = _names(own.landmark_names, own.num_landmarks)
        self.ndim = int(own.ndim if own.ndim is not None else getattr(network, "ndim", 3))
        self.sigma = per_axis(own.sigma, self.ndim, "sigma")
        if min(self.sigma) <= 0:
            raise SettingError(f"sigma: expected positive millimetres, got {own.sigma}")
        self.sigma_unit, self.target, self.decoder = own.sigma_unit, own.target, own.decoder
        self.loss = losses.loss_name(own.loss)
        self.coordinate_weight = float(own.coordinate_weight)
        self.window = float(own.window) if own.window is not None else 2.5 * max(self.sigma)
        self.presence = own.presence
        self.tile_size = None if own.tile_size is None else per_axis(own.tile_size, self.ndim, "tile_size")
        self.tile_overlap = own.tile_overlap
        self.refine = None if own.refine is None else per_axis(own.refine, self.ndim, "refine")
        self.coarse = per_axis(own.coarse, self.ndim, "coarse")
        if min(self.coarse) < 1 or (self.refine is None and max(self.coarse) > 1):
            raise SettingError(f"coarse: expected 1 without refine, at least 1 with it, got {own.coarse}")
        self.label_classes, self.label_weight = int(own.label_classes), float(own.label_weight)
        self.borders = None if own.borders is None else float(own.borders)
        self.original_metrics = own.original_metrics
        self.order = swap_order(self.names, own.swap)
        self.input_range = (float(own.input_range[0]), float(own.input_range[1]))
        self.time_step = own.time_step
        self.views = make_views(self.ndim, own.ensemble_shift, own.ensemble_flips)
        self.calibration = Calibration(len(self.names), self.ndim)
        self.register_buffer("mean_fractions", torch.full((len(self.names), self.ndim), torch.nan))
        self._settings = replace(own, landmark_names=self.names, num_landmarks=None, ndim=self.ndim)

    @property
    def num_landmarks(self) -> int:
        """Number of landmarks."""
        return len(self.names)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Heatmap loss, and coordinate and presence losses if asked for; with `refine` over both passes.

        Raises:
            DataError: the batch has no landmarks or another number of them.
        """
        if self.refine is None:
            return self._losses(batch)
        first = self._losses(coarsen(batch, self.coarse))
        second = self._losses(self._training_crops(batch, self.refine))
        both = {name: (first[name] + second[name]) / 2 for name in first}
        return both | {"coarse": first["heatmap"].detach(), "fine": second["heatmap"].detach()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        targets = make_targets(
            batch,
            self.num_landmarks,
            sigma=self.sigma,
            normalised=self.loss == "ce",
            target=self.target,
            unit=self.sigma_unit,
        )
        maps = self._asked.maps(network_input(batch, self.input_range, self.borders))
        logits = maps[:, : self.num_landmarks]
        # An empty map is a target only where absence is a statement and the loss can express it.
        counted = torch.ones_like(targets.present) if self.presence and self.loss != "ce" else targets.present
        result = {"heatmap": losses.heatmap_loss(logits, targets.heatmaps, counted, self.loss)}
        result["loss"] = result["heatmap"]
        if self.coordinate_weight:
            result["distance_mm"] = losses.coordinate_distance(logits, targets.points, targets.spacing, targets.present)
            result["loss"] = result["loss"] + self.coordinate_weight * result["distance_mm"]
        if self.presence:
            result["presence"] = losses.presence_loss(logits, targets.present, self.loss)
            result["loss"] = result["loss"] + result["presence"]
        if self.label_classes:
            if batch.labels is None:
                raise DataError(f"{batch.names[0]}: no labels; expected {self.label_classes} classes to learn")
            result["labels"] = losses.label_loss(maps[:, self.num_landmarks :], batch.labels)
            result["loss"] = result["loss"] + self.label_weight * result["labels"]
        return result

    def _training_crops(self, batch: Batch, size: Sequence[int]) -> Batch:
        """One crop per sample around one of its landmarks, off-centre by up to a quarter of the crop."""
        if batch.landmarks is None:
            raise DataError(f"{batch.names[0]}: no landmarks; expected {self.num_landmarks} points to train on")
        chance = torch.rand(batch.landmarks.shape[:2], device=batch.landmarks.device)
        chosen = torch.where(batch.landmarks[..., 0].isfinite(), chance, -1.0).argmax(dim=1)
        centres = batch.landmarks[torch.arange(len(batch), device=chosen.device), chosen]
        jitter = (torch.rand_like(centres) - 0.5) * torch.tensor(list(size), dtype=centres.dtype).to(centres) / 2
        starts = crop_starts(centres + jitter, batch.image.shape[2:], size)
        return crop_batch(batch, range(len(batch)), starts, size)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[LandmarkPrediction]:
        """Points, uncertainty and presence of every image of the batch; landmarks in it are not looked at.

        Raises:
            SettingError: the images have another rank than the task.
        """
        if batch.image.ndim - 2 != self.ndim:
            raise SettingError(f"ndim: the model is for rank {self.ndim}, the images have rank {batch.image.ndim - 2}")
        first = batch if self.refine is None else coarsen(batch, self.coarse)
        logits = self._whole_logits(first)
        points, spread = self._read(logits, first.spacing)
        presence = torch.ones_like(spread)
        if self.presence:
            presence = losses.presence_logits(logits, self.loss).sigmoid()
        if self.refine is not None:
            points, spread = self._second_pass(batch, to_fine(points, self.coarse), spread, self.refine)
        radii = self.calibration.radii(spread)
        return [
            LandmarkPrediction(
                name=name,
                names=self.names,
                index=points[sample].cpu().numpy(),
                world=np.asarray(space.to_world(points[sample].double().cpu().numpy()), dtype=np.float64),
                spread_mm=spread[sample].cpu().numpy(),
                radii_mm=radii[sample].cpu().numpy(),
                presence=presence[sample].cpu().numpy(),
                levels=LEVELS,
                space=space,
            )
            for sample, (name, space) in enumerate(zip(batch.names, batch.spaces, strict=True))
        ]

    @torch.no_grad()
    def heatmaps(self, batch: Batch) -> Tensor:
        """The non-negative maps of a first pass over whole images, `(B, N, *spatial)`, as decoders read them."""
        return losses.activate(self._whole_logits(batch), self.loss)

    def calibrate(self, predictions: Sequence[LandmarkPrediction], samples: Sequence[Sample]) -> None:
        """Set the radii's factors from held-out cases; they are buffers and are saved with the weights.

        Where no point is both predicted and annotated they stay as they are, those of a Gaussian.

        Raises:
            DataError: no cases.
        """
        if not predictions:
            raise DataError("calibration: expected at least one held-out case")
        errors = [
            radial_errors(prediction.world, sample.space.to_world(_points(sample)))
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        if np.isfinite(errors).any():
            self.calibration.fit(np.stack([prediction.spread_mm for prediction in predictions]), np.stack(errors))

    def fit_baseline(self, samples: Iterable[Sample]) -> None:
        """Remember the training cases' mean positions, so that metrics can show the baseline beside the model.

        Raises:
            DataError: no cases, or one without landmarks.
        """
        known = [(_points(sample), sample.space) for sample in samples]
        mean = MeanPosition.fit([points for points, _ in known], [space for _, space in known])
        self.mean_fractions.copy_(torch.from_numpy(mean.fractions))

    def metrics(self, predictions: Sequence[LandmarkPrediction], batch: Batch, wanted: Wanted = ALL) -> list[Row]:
        """One row per sample (`metrics.landmarks.case_row`), against the batch's points.

        The points were moved with the image without rounding, so these are the original ones. Means of a row are over
        the landmarks that count (`MetricChoice.classes`).

        Raises:
            DataError: the batch has no landmarks.
        """
        if batch.landmarks is None:
            raise DataError(f"{batch.names[0]}: no landmarks; expected {self.num_landmarks} points to compare with")
        return score_rows(
            predictions,
            batch,
            batch.landmarks,
            baseline=MeanPosition(self.mean_fractions.double().cpu().numpy()),
            presence=self.presence,
            original=self.original_metrics,
            counted=self._counted(),
        )

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """`metrics.landmarks.summarise`: `mre_mm` and its interval, SDR, mAP, coverage, presence AUC.

        And the means of `mean_position_mm`, the error of the baseline, NaN before `fit_baseline`, and of the original's
        own scores where the rows have them.
        """
        return summarise_rows(rows, self._counted(), self.chosen.thresholds)

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold with that choice."""
        names = [name for name in self.names if chosen.counts(name)]
        return metric_names(names, chosen.thresholds, original=self.original_metrics)

    def measured_classes(self) -> Sequence[str]:
        """The names of the landmarks."""
        return self.names

    def _counted(self) -> list[str]:
        return [name for name in self.names if self.chosen.counts(name)]

    @property
    def calls(self) -> int:
        """One for each view, see `Task.calls`."""
        return len(self.views)

    @property
    def _asked(self) -> AskedNetwork:
        return AskedNetwork(self.network, self.num_landmarks, self.label_classes, self.time_step)

    def _whole_logits(self, batch: Batch) -> Tensor:
        """Logits of images of any size: in tiles if they are larger than one, averaged over the views."""
        image = network_input(batch, self.input_range, self.borders)
        network = self._asked.in_tiles(image.shape[2:], self.tile_size, self.tile_overlap)
        mirror = partial(mirrored, borders=self.borders)
        return average_views(image, network, self.views, self.order, mirror).float()

    def _read(self, logits: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
        """Points `(B, N, ndim)` and their spreads in mm `(B, N)`, map after map: only the logits are held for all."""
        found = [self._read_one(logits[:, one, None], spacing) for one in range(logits.shape[1])]
        return torch.cat([points for points, _ in found], dim=1), torch.cat([spread for _, spread in found], dim=1)

    def _read_one(self, logits: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
        maps = losses.activate(logits, self.loss)
        if self.loss != "ce":
            # Outside the blob such maps are noise around zero, whose far moments would drown the blob's.
            maps = (maps - 0.1 * maps.amax(dim=list(range(2, maps.ndim)), keepdim=True)).clamp(min=0)
        points = self._decode(maps, spacing)
        offset = (expectation(maps) - points) * spacing[:, None]
        variance = covariance(maps, spacing=spacing).diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        return points, (variance + offset.square().sum(dim=-1)).sqrt()

    def _decode(self, maps: Tensor, spacing: Tensor) -> Tensor:
        scale = in_unit(spacing, self.sigma_unit)
        if self.decoder == "local":
            return peaks.local_expectation(maps, window=self.window, spacing=scale)
        if self.decoder == "gaussian":
            return peaks.gaussian_fit(maps, window=self.window, spacing=scale)
        if self.decoder == "expectation":
            return expectation(maps)
        if self.decoder == "centroid":
            return peaks.centroid(maps)
        if self.decoder == "argmax":
            return peaks.argmax(maps)
        raise unknown_choice("decoder", self.decoder, DECODERS)

    def _second_pass(self, batch: Batch, points: Tensor, spread: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Predict each landmark again in a crop around it; one that finds nothing keeps its first point."""
        points, spread = points.clone(), spread.clone()
        starts = crop_starts(points, batch.image.shape[2:], size)
        for landmark in range(self.num_landmarks):
            crops = crop_batch(batch, range(len(batch)), starts[:, landmark], size)
            image = network_input(crops, self.input_range, None)
            logits = average_views(image, self._asked, self.views, self.order)
            found, width = self._read(logits[:, landmark, None], crops.spacing)
            found = found[:, 0] + starts[:, landmark]
            better = found.isfinite().all(dim=-1) & points[:, landmark].isfinite().all(dim=-1)
            points[:, landmark] = torch.where(better[:, None], found, points[:, landmark])
            spread[:, landmark] = torch.where(better, width[:, 0], spread[:, landmark])
        return points, spread


def _names(names: Sequence[str] | None, count: int | None) -> tuple[str, ...]:
    if names is None:
        if count is None or count < 1:
            raise SettingError(f"num_landmarks: expected landmark_names, or a number of at least 1, got {count}")
        return tuple(str(number + 1) for number in range(count))
    result = tuple(str(name) for name in names)
    if not result or len(set(result)) != len(result):
        raise SettingError(f"landmark_names: expected different names, at least one, got {list(result)}")
    if count is not None and count != len(result):
        raise SettingError(f"num_landmarks: expected {len(result)}, the number of landmark_names, got {count}")
    return result


def _points(sample: Sample) -> NDArray[np.float64]:
    if sample.landmarks is None:
        raise DataError(f"{sample.name}: no landmarks; expected points to compare with")
    return sample.landmarks.double().cpu().numpy()

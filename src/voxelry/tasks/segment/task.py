"""The segmentation task: a detector that finds, outlines and names every object of an image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.core.rank import per_axis
from voxelry.core.settings import check_fraction, check_range, settle
from voxelry.core.space import Space
from voxelry.data.sample import Batch, Sample
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.metrics.instances import (
    RANKED,
    THRESHOLDS,
    accuracy_by_score,
    instance_row,
    metric_names,
    summarise,
)
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.ops.instances import Instances, LabelVolume
from voxelry.tasks.base import Row, Task
from voxelry.tasks.segment.baseline import Watershed
from voxelry.tasks.segment.detect import Detector
from voxelry.tasks.segment.estimate import AUTO, estimated_size
from voxelry.tasks.segment.predict import InstancePrediction
from voxelry.tasks.segment.rescale import check_object_size, learned_grid, size_for_objects
from voxelry.tasks.segment.targets import classes_of, make_targets
from voxelry.tasks.segment.tiled import Tiles, predict_tiled

__all__ = ["SegmentTask"]

_FLOOR = 0.05  # detections below are never looked at
_LEVELS = tuple(level / 20 for level in range(2, 20))  # scores that are tried as threshold
_BASELINE_VOXELS = 1 << 25  # of images that the baseline is worked out for
_BASELINE_METRICS = ("ap_50", "ap_75", "pq")
_TUNED_VOXELS = 1 << 20  # of an image that it is tuned on


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """How instances are learned and reported.

    Attributes:
        class_names: of classes 1, 2, ...; None: one, object.
        score_threshold: objects of a lower score are not reported. None: `calibrate` finds the one that is best on
            the validation cases; 0.5 until then.
        mask_threshold: probability from which a voxel belongs to an object.
        min_voxels: smaller objects are not reported.
        min_volume: the same in mm³ (mm² at rank 2).
        min_visible: see `decode.decode`.
        tile_size: voxels per axis; a larger image is predicted by overlapping tiles. None: never.
        tile_overlap: fraction of a tile shared with the next; it should hold the largest object.
        voxel_size: mm along each axis that the network learned from. Images whose voxels are longer or shorter are
            resampled to them before it looks, see `rescale.learned_grid`; `tile_size` counts these voxels. None: voxels
            are taken as they are.
        learned_object_size: median size of the objects that the network learned from, the geometric mean of the edges
            of a box in mm, or in voxels where `voxel_size` is None. None: not known.
        object_size: that of the objects in the images to predict, in mm, or in voxels where an image doesn't say how
            large they are. Images are then resampled so that objects look as large as those learned from. `"auto"`:
            estimated from each image, see `estimate.estimated_size`. None: as in training.
        join_iou, nms_iou: how parts and doubles from several tiles are recognised, see `stitch.stitch`.
        input_range: where images in [0, 1] are mapped to before the network sees them.
        loss_weights: of the network's losses, by their names without `loss_`; 1 where none is given.
    """

    class_names: Sequence[str] | None = None
    score_threshold: float | None = None
    mask_threshold: float = 0.5
    min_voxels: int = 1
    min_volume: float = 0.0
    min_visible: float = 0.3
    tile_size: int | Sequence[int] | None = None
    tile_overlap: float = 0.5
    voxel_size: float | Sequence[float] | None = None
    learned_object_size: float | None = None
    object_size: float | str | None = None
    join_iou: float = 0.5
    nms_iou: float = 0.5
    input_range: Sequence[float] = (-1.0, 1.0)
    loss_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("score_threshold", "mask_threshold", "min_visible", "join_iou", "nms_iou"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise SettingError(f"{name}: expected a number in [0, 1], got {share}")
        if self.min_voxels < 0 or not self.min_volume >= 0:
            raise SettingError(
                f"min_voxels, min_volume: expected no negative size, got {self.min_voxels}, {self.min_volume}"
            )
        for name in ("learned_object_size", "object_size"):
            size = getattr(self, name)
            number = isinstance(size, Real) and not isinstance(size, bool)
            estimated = name == "object_size" and size == AUTO
            if size is not None and not estimated and not (number and 0 < size < math.inf):
                also = f", or {AUTO}" if name == "object_size" else ""
                raise SettingError(f"{name}: expected a positive length in mm, or voxels{also}, got {size!r}")
        if self.object_size is not None and self.learned_object_size is None:
            raise SettingError("object_size: expected a model that knows the size of the objects it learned from; none")
        check_fraction(self.tile_overlap, "tile_overlap")
        check_range(self.input_range, "input_range")


class SegmentTask(Task[Batch, InstancePrediction]):
    """Finds instances, `(B, C, *spatial)` to boxes, scores, classes and masks per image.

    Args:
        network: a detector with `losses` and `detect`, see `models.mask_rcnn.MaskRCNN`.

    Raises:
        SettingError: a setting out of its range; the message names it.
    """

    Settings = SegmentSettings

    name = "segment"
    network: MaskRCNN
    monitor = "ap_50"
    higher_is_better = True
    slow = RANKED
    highest_threshold = 1.0
    threshold: Tensor
    watershed: Tensor

    def __init__(self, network: MaskRCNN, **settings: Any):
        super().__init__()
        own = self._settings = settle(SegmentSettings, settings)
        self.network = network
        self.ndim = network.ndim
        self.class_names = ("object",) if own.class_names is None else tuple(str(name) for name in own.class_names)
        if len(self.class_names) != network.num_classes - 1 or len(set(self.class_names)) != len(self.class_names):
            raise SettingError(
                f"class_names: expected {network.num_classes - 1} different names, as the network has so many "
                f"classes, got {list(self.class_names)}"
            )
        self.score_threshold, self.mask_threshold, self.min_visible = (
            own.score_threshold,
            own.mask_threshold,
            own.min_visible,
        )
        self.min_voxels, self.min_volume = own.min_voxels, own.min_volume
        self.tile_size = None if own.tile_size is None else per_axis(own.tile_size, self.ndim, "tile_size")
        self.tile_overlap, self.join_iou, self.nms_iou = own.tile_overlap, own.join_iou, own.nms_iou
        self.voxel_size = None if own.voxel_size is None else per_axis(own.voxel_size, self.ndim, "voxel_size")
        if self.voxel_size is not None and not all(0 < step < math.inf for step in self.voxel_size):
            raise SettingError(f"voxel_size: expected positive millimetres, got {own.voxel_size}")
        size = own.object_size
        self.object_size = size if size is None or size == AUTO else float(size)
        self.learned_object_size = own.learned_object_size
        self.input_range = (float(own.input_range[0]), float(own.input_range[1]))
        self.loss_weights = {str(name): float(weight) for name, weight in (own.loss_weights or {}).items()}
        self.register_buffer("threshold", torch.tensor(math.nan))
        self.register_buffer("watershed", torch.full((2,), math.nan))

    @property
    def operating_threshold(self) -> float:
        """The score from which objects are reported."""
        if self.score_threshold is not None:
            return self.score_threshold
        calibrated = float(self.threshold)
        return 0.5 if math.isnan(calibrated) else calibrated

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The network's losses and their weighted sum.

        Raises:
            DataError: annotations are missing or can't be learned from; names the case.
            SettingError: a weight of a loss that the network doesn't have.
        """
        targets = make_targets(batch, len(self.class_names))
        found = self.network.losses(self._scaled(batch.image), targets.boxes, targets.classes, targets.masks)
        losses = {name.removeprefix("loss_"): value for name, value in found.items()}
        unknown = sorted(set(self.loss_weights) - set(losses))
        if unknown:
            raise SettingError(f"loss_weights: no loss {unknown[0]}; expected some of {', '.join(losses)}")
        total = torch.stack([self.loss_weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[InstancePrediction]:
        """Instances of every image of the batch; annotations in it are not looked at.

        Raises:
            SettingError: the images have another rank than the task.
        """
        if batch.image.ndim - 2 != self.ndim:
            raise SettingError(f"ndim: the model is for rank {self.ndim}, the images have rank {batch.image.ndim - 2}")
        return [
            self.prediction(name, space, self._sized_for(image, space).instances(image, space))
            for name, space, image in zip(batch.names, batch.spaces, batch.image, strict=True)
        ]

    def prediction(self, name: str, space: Space, candidates: Instances, *, painted: bool = True) -> InstancePrediction:
        """What is reported of some candidates: those sure enough of which something can be seen.

        Args:
            painted: hold the label volume as an array, unless it is very large; otherwise never.
        """
        sure = candidates.take(np.flatnonzero(candidates.scores >= self.operating_threshold))
        volume = None if painted else LabelVolume(sure, space.shape)
        found = InstancePrediction.from_instances(name, space, sure, volume, candidates=candidates)
        return found.visible() if painted else found

    def sized(self, read_window: Callable[[tuple[slice, ...]], Any], space: Space) -> SegmentTask:
        """The task as it looks at one image: where the size of its objects is `"auto"`, it is estimated.

        Args:
            read_window: see `estimate.estimated_size`.
            space: grid of the image.

        Raises:
            SettingError: the objects are said to be larger than the image or smaller than its voxels.
        """
        if self.object_size != AUTO:
            if isinstance(self.object_size, float):
                check_object_size(space, self.object_size)
            return self
        threshold = self.operating_threshold
        return self._of_size(
            estimated_size(read_window, space, lambda size: self._of_size(size).detector(space), threshold)
        )

    def _of_size(self, size: float | None) -> SegmentTask:
        """The same task with the same network for objects of that size."""
        own = copy.copy(self)
        own.object_size = size
        return own

    def _sized_for(self, image: Tensor, space: Space) -> SegmentTask:
        return self.sized(lambda window: image[(slice(None), *window)].cpu(), space)

    @property
    def seen_size(self) -> tuple[float, ...] | None:
        """Voxels in mm along each axis that images are brought to before the network looks; None: as they are."""
        if not isinstance(self.object_size, float) or self.learned_object_size is None:
            return self.voxel_size
        return size_for_objects(self.voxel_size, self.learned_object_size, self.object_size, self.ndim)

    def seen_grid(self, space: Space) -> Space:
        """The grid on which the network sees an image."""
        return learned_grid(space, self.seen_size, sure=isinstance(self.object_size, float))

    @property
    def tile_step(self) -> int:
        """Tiles begin at multiples of this: on the grid of the features they see what the whole volume shows there."""
        step = math.lcm(*(step for strides in self.network.backbone.strides.values() for step in strides))
        while step > 1 and any(step > size * (1 - self.tile_overlap) for size in self.tile_size or ()):
            step //= 2
        return step

    def tile_on(self, space: Space) -> tuple[int, ...] | None:
        """`tile_size` in voxels of a grid, which the network may see at another size."""
        if self.tile_size is None:
            return None
        steps = zip(self.tile_size, self.seen_grid(space).spacing, space.spacing, strict=True)
        return tuple(max(1, round(size * learned / step)) for size, learned, step in steps)

    def fits_a_tile(self, space: Space) -> bool:
        """Whether images on that grid are seen at once; all are without a `tile_size`."""
        tile = self.tile_on(space)
        return tile is None or all(size <= part for size, part in zip(space.shape, tile, strict=True))

    @torch.no_grad()
    def instances(self, image: Tensor, space: Space) -> Instances:
        """Everything found in an image `(C, *spatial)`, however unsure, in tiles if it is larger than one."""
        if self.fits_a_tile(space):
            return self.detector(space)(image)
        return self.tiled(self.tiles(lambda window: image[(slice(None), *window)], space))

    def tiled(self, tiles: Tiles, **options: Any) -> Instances:
        """Everything found in a volume that is read tile by tile; options are those of `predict_tiled`."""
        return predict_tiled(tiles, join_iou=self.join_iou, nms_iou=self.nms_iou, **options)

    def tiles(self, read_window: Any, space: Space, **options: Any) -> Tiles:
        """The tiles of a volume.

        Args:
            read_window: pixels `(C, *window)` of a window of the volume, prepared as the network wants them.
            space: grid of the volume.
            options: `state` and `key` of `Tiles`.

        Raises:
            SettingError: the task has no `tile_size`.
        """
        tile = self.tile_on(space)
        if tile is None:
            raise SettingError("tile_size: expected voxels per axis to predict by tiles, got None")
        return Tiles(
            read_window,
            space.shape,
            self.detector(space),
            tile_size=tile,
            overlap=self.tile_overlap,
            align=self.tile_step if tile == self.tile_size else 1,
            **options,
        )

    def detector(self, space: Space) -> Detector:
        """What finds everything in an image on that grid, or in a part of it, that the network sees at once."""
        decoding = {
            "score_threshold": min(_FLOOR, self.operating_threshold),
            "mask_threshold": self.mask_threshold,
            "min_voxels": max(self.min_voxels, math.ceil(self.min_volume / math.prod(space.spacing))),
            "min_visible": self.min_visible,
        }
        return Detector(self.network, space, self.seen_grid(space), self.input_range, decoding)

    def calibrate(self, predictions: Sequence[InstancePrediction], samples: Sequence[Sample]) -> None:
        """Find the score threshold that is best on held-out cases; it is a buffer and is saved with the weights.

        Best is the largest sum of AP at IoU 0.5 and 0.75, means over the classes, so that a threshold isn't chosen by
        outlines that hardly fit.
        """
        if self.score_threshold is not None or not predictions:
            return
        values = accuracy_by_score(
            [_candidates(prediction) for prediction in predictions],
            [_truth(sample.masks, sample.name) for sample in samples],
            _LEVELS,
            truth_classes=[self._true_classes(sample.name, sample.boxes, sample.classes) for sample in samples],
        ).sum(axis=1)
        best = np.flatnonzero(np.isclose(values, values.max()))
        self.threshold.fill_(_LEVELS[int(best[len(best) // 2])])

    def fit_baseline(self, samples: Iterable[Sample]) -> None:
        """Tune Otsu's threshold and a watershed on the first training cases, to be shown beside the network.

        Of large images the middle: each of the settings that are tried is a watershed of its own.

        Raises:
            DataError: a case without instances.
        """
        known = []
        for _, sample in zip(range(4), samples, strict=False):
            middle = _middle(sample.space.shape, _TUNED_VOXELS)
            truth = _truth(sample.masks, sample.name)[middle]
            known.append((sample.image[0].numpy()[middle], sample.space.spacing, truth))
        if known:
            tuned = Watershed.tuned(known)
            self.watershed.copy_(torch.tensor([tuned.smoothing, tuned.distance]))

    def metrics(self, predictions: Sequence[InstancePrediction], batch: Batch, wanted: Wanted = ALL) -> list[Row]:
        """One row per sample (`metrics.instances.instance_row`), and after `fit_baseline` the baseline's sums.

        Whatever isn't ranked by score is measured on the label volume, as it is written. Objects of classes that don't
        count (`MetricChoice.classes`) are left out on both sides.

        Raises:
            DataError: the batch has no instances, or some of an unknown class.
        """
        if batch.masks is None:
            raise DataError(f"{batch.names[0]}: no instances; expected a label volume to compare with")
        rows = []
        counted = [number for number, name in enumerate(self.class_names, start=1) if self.chosen.counts(name)]
        for place, prediction in enumerate(predictions):
            truth = _truth(batch.masks[place], prediction.name)
            boxes, kinds = (None if field is None else field[place] for field in (batch.boxes, batch.classes))
            row: Row = dict(
                instance_row(
                    _candidates(prediction),
                    truth,
                    name=prediction.name,
                    truth_classes=self._true_classes(prediction.name, boxes, kinds),
                    score_threshold=self.operating_threshold,
                    thresholds=self.chosen.thresholds or THRESHOLDS,
                    ranked=wanted(*RANKED),
                    counted=counted,
                    truth_ids=batch.ids[place] if batch.ids else None,
                )
            )
            if not bool(self.watershed.isnan().any()) and truth.size <= _BASELINE_VOXELS:
                baseline = Watershed(*self.watershed.tolist())
                found = baseline(batch.image[place, 0].cpu().numpy(), batch.spaces[place].spacing)
                row["watershed_record"] = instance_row(found, truth)["record"]
            rows.append(row)
        return rows

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """`metrics.instances.summarise`, with a score for each of several classes.

        After `fit_baseline` also `watershed_ap_50`; of several classes, which the baseline doesn't tell apart, it is
        `watershed_ap_50_class_blind`.
        """
        names = dict(enumerate(self.class_names, start=1))
        result = summarise(rows, class_names=names)
        others = [{"record": row["watershed_record"]} for row in rows if "watershed_record" in row]
        if others:
            baseline, blind = summarise(others), "_class_blind" if len(names) > 1 else ""
            result |= {f"watershed_{name}{blind}": baseline[name] for name in _BASELINE_METRICS}
        return result | {"score_threshold": self.operating_threshold}

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold with that choice."""
        blind = "_class_blind" if len(self.class_names) > 1 else ""
        baseline = [f"watershed_{name}{blind}" for name in _BASELINE_METRICS]
        return [*metric_names(self.class_names, chosen.thresholds), *baseline, "score_threshold"]

    def measured_classes(self) -> Sequence[str]:
        """The names of the classes."""
        return self.class_names

    def _true_classes(self, name: str, boxes: Tensor | None, kinds: Tensor | None) -> NDArray[np.int64] | None:
        """The classes of an image's annotated objects; None where there is only one class."""
        if len(self.class_names) == 1 or boxes is None:
            return None
        found: NDArray[np.int64] = classes_of(name, boxes, kinds, len(self.class_names)).cpu().numpy()
        return found

    def _scaled(self, image: Tensor) -> Tensor:
        low, high = self.input_range
        return image * (high - low) + low


def _middle(shape: Sequence[int], most: int) -> tuple[slice, ...]:
    """The window of the middle of an image that has its proportions and at most so many voxels."""
    share = min(1.0, (most / math.prod(shape)) ** (1 / len(shape)))
    lengths = [max(1, int(size * share)) for size in shape]
    return tuple(slice((size - length) // 2, (size + length) // 2) for size, length in zip(shape, lengths, strict=True))


def _candidates(prediction: InstancePrediction) -> Instances:
    return prediction.instances if prediction.candidates is None else prediction.candidates


def _truth(masks: Tensor | None, name: str) -> NDArray[np.int64]:
    if masks is None:
        raise DataError(f"{name}: no instances; expected a label volume to compare with")
    found: NDArray[np.int64] = masks.cpu().numpy()
    return found

"""The segmentation task in the engine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn

from voxelry.backbones.fpn import FPN
from voxelry.bundle.backbone import configured_backbone, pretraining_of
from voxelry.bundle.model import Model
from voxelry.bundle.pretrained import Pretrained
from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.rank import per_axis
from voxelry.core.remote import as_path
from voxelry.core.settings import keywords, settle
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.crops.dataset import CropDataset
from voxelry.data.dataset import VolumeDataset
from voxelry.data.demands import in_pieces, lacking
from voxelry.data.layouts.files import case_name
from voxelry.data.parts import SampleSource, Splits
from voxelry.data.preprocess.file import PreparedFile
from voxelry.data.sample import Batch, Sample
from voxelry.data.segment_names import check_numbers, class_list, segment_names
from voxelry.io import open_image
from voxelry.io.images.image import split_dataset
from voxelry.io.images.record import ImageFile
from voxelry.models.mask_rcnn.settings import TransformSettings
from voxelry.models.mask_rcnn.transform import Transform, resize_boxes
from voxelry.models.transfer import TransferReport, best_transfer
from voxelry.ops.instances import Instances, PackedCrops
from voxelry.tasks.evaluate import Evaluation, OnDemand
from voxelry.tasks.recipe import History, Recipe, fitting, make_folder
from voxelry.tasks.segment import report as pages
from voxelry.tasks.segment.demo import DEMO
from voxelry.tasks.segment.estimate import AUTO
from voxelry.tasks.segment.outputs import write_instances
from voxelry.tasks.segment.predict import InstancePrediction
from voxelry.tasks.segment.rescale import assumption, common_object_size, common_size, size_of_objects
from voxelry.tasks.segment.targets import anchors_for
from voxelry.tasks.segment.task import SegmentTask
from voxelry.tasks.segment.tiled import image_key
from voxelry.viz.report import Report

__all__ = ["SegmentRecipe"]

log = logging.getLogger("voxelry")

ANCHOR_UNITS = ("voxel", "mm")
_ONE_CLASS = ("object",)
_WHOLE_VOXELS = 1 << 23  # larger images are never read as a whole
_PYRAMID_CHANNELS = 64  # around a backbone whose levels have unlike channels
_SIZED_CASES = 1000  # training cases whose voxel size is looked at
_MEASURED_CASES = 20  # training cases, of which the median size of an object is taken
_ANCHOR_CASES = 200  # so many training cases are looked at for the sizes of their objects


class SegmentRecipe(Recipe[SegmentTask, InstancePrediction]):
    """Instances: a detector around a backbone, label volumes."""

    task = SegmentTask
    needs = ("masks", "labels")
    truth = ("masks", "labels")
    required = "instances"
    demo = DEMO
    stored = (Instances, PackedCrops, Space)
    adjustable = (
        "task.tile_size",
        "task.tile_overlap",
        "task.voxel_size",
        "task.object_size",
        "task.score_threshold",
        "task.mask_threshold",
        "task.min_voxels",
        "task.min_volume",
        "task.min_visible",
        "task.join_iou",
        "task.nms_iou",
        "network.rpn.pre_nms_top_n_test",
        "network.rpn.post_nms_top_n_test",
        "network.rpn.nms_thresh",
        "network.rpn.score_thresh",
        "network.box.score_thresh",
        "network.box.suppression",
        "network.box.nms_thresh",
        "network.box.detections_per_img",
    )

    def settle(self, config: DictConfig, splits: Splits) -> None:
        """The names of the classes, where they are left to the files of labels; several ask for labels."""
        parts = (splits.train, splits.validation, splits.test)
        cases = [case for part in parts if isinstance(part, VolumeDataset) for case in part.cases]
        own = isinstance(splits.train, VolumeDataset) and not splits.train.reads_own()
        if config.task.class_names is None:
            config.task.class_names = class_list(segment_names(cases)) if own else []
        if any(case.instances is not None and case.instances == case.labels for case in cases):
            log.info("each class of a case is one object, as no file of instances tells several apart")
        if not config.task.class_names:
            config.task.class_names = list(_ONE_CLASS)
        elif len(config.task.class_names) > 1:
            for case in cases:
                if (fault := lacking(case, "labels")) is not None:
                    names = ",".join(config.task.class_names)
                    raise DataError(f"{case.image}: {fault}, which tell the classes of task.class_names=[{names}]")
            if own:
                check_numbers(cases, dict(enumerate(config.task.class_names, start=1)))

    def network(
        self, config: DictConfig, dataset: SampleSource, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """The detector of `config.model` around the backbone of `config.backbone`.

        Of pretrained weights that part is taken over which fits best: a whole detector, or a backbone alone.

        Raises:
            ConfigError: no backbone, or sizes of anchors that can't be.
        """
        backbone = configured_backbone(config, dataset[0], pretrained)
        if len(set(backbone.out_channels.values())) > 1:
            backbone = FPN(backbone, out_channels=_PYRAMID_CHANNELS, extra=None)
        settings = keywords(config.model)
        detector = get_class(str(config.model._target_))
        transform = Transform(
            settle(TransformSettings, settings.get("transform") or {}, "transform."), ndim=backbone.ndim
        )
        settings["anchors"] = _anchors(settings.get("anchors") or {}, dataset, len(backbone.strides), transform)
        network = detector(backbone, num_classes=1 + len(config.task.class_names or _ONE_CLASS), **settings)
        if pretrained is None:
            return network, None
        return network, fitting(best_transfer(network, pretrained.weights), pretrained)

    def pretraining(self, config: DictConfig) -> str | None:
        """That of the backbone."""
        return pretraining_of(config)

    def settings(
        self, config: DictConfig, dataset: VolumeDataset | CropDataset, pretrained: Pretrained | None
    ) -> dict[str, Any]:
        """Tiles as large as the patches or crops, the voxel size of the cases, the pretraining's range of values."""
        settings: dict[str, Any] = {}
        if config.task.voxel_size == "auto":
            # images that are resized to so many voxels have no size of their own
            resized = config.data.get("preprocess") is not None and config.data.preprocess.image_size is not None
            settings["voxel_size"] = None if resized else common_size(dataset.spaces(_SIZED_CASES))
        if config.task.learned_object_size == "auto":
            cases = [dataset[index] for index in range(min(len(dataset), _MEASURED_CASES))]
            alike = settings.get("voxel_size", config.task.voxel_size) is not None
            settings["learned_object_size"] = common_object_size(cases if alike else map(_in_voxels, cases))
        if config.task.tile_size is None:
            if "index" in config.data:
                settings["tile_size"] = list(dataset[0].space.shape)
            elif isinstance(dataset, VolumeDataset) and dataset.patches is not None:
                settings["tile_size"] = dataset.patches.size
        if pretrained is not None:
            settings["input_range"] = pretrained.input_range
        return settings

    def check(self, task: SegmentTask, dataset: VolumeDataset) -> None:
        """Refuse cases without instances, and those whose classes have other numbers than the task's."""
        for case in dataset.cases:
            if case.instances is None:
                raise DataError(f"{case.image}: no instances for this image, to compare with")
        if len(task.class_names) > 1 and not dataset.reads_own():
            check_numbers(dataset.cases, dict(enumerate(task.class_names, start=1)))

    def truth_of(self, dataset: SampleSource, index: int) -> Sample:
        """A case on the voxels of its file, where it is one of whole files: those that labels are written on."""
        if isinstance(dataset, VolumeDataset) and dataset.patches is None:
            return dataset.on_own_grid(index)
        return dataset[index]

    def compared(
        self, predictions: list[InstancePrediction], batch: Batch, dataset: SampleSource, index: int
    ) -> tuple[list[InstancePrediction], Batch]:
        """What `write` writes, and what the label file holds."""
        sample = self.truth_of(dataset, index)
        return [one.on(sample.space).visible() for one in predictions], collate([sample]).to(batch.image.device)

    def to_store(self, prediction: InstancePrediction) -> tuple[str, Space, Instances, Instances | None]:
        """All but the label volume, which is painted of it again."""
        candidates = None if prediction.candidates is None else _packed(prediction.candidates)
        return prediction.name, prediction.space, _packed(prediction.instances), candidates

    def from_store(self, stored: tuple[str, Space, Instances, Instances | None]) -> InstancePrediction:
        """The same prediction."""
        name, space, instances, candidates = stored
        return InstancePrediction.from_instances(name, space, instances, candidates=candidates)

    def predict_file(
        self,
        model: Model[SegmentTask],
        path: Path,
        folder: Path,
        *,
        format: str,
        options: Mapping[str, Any],
        parts: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Predict one file, tile by tile if it is larger than one; what is very large is never read as a whole.

        Finished tiles are kept in `parts`: the same prediction goes on where a killed one stopped.
        """
        file, read, space = self._source(model, path, options)
        task = model.task.sized(read, space)
        if isinstance(task.object_size, float) and task.seen_size is not None:
            how = "estimated: " if model.task.object_size == AUTO else ""
            log.warning("%s: %s%s", path, how, size_of_objects(space, task.seen_size, task.object_size))
        elif task.voxel_size is not None and (told := assumption(space, task.voxel_size)):
            log.warning("%s: %s", path, told)
        if task.fits_a_tile(space):
            found = task.detector(space)(read(tuple(slice(0, size) for size in space.shape)))
        else:
            tiles = task.tiles(read, space, state=parts, key=_key(file, model, options))
            found = task.tiled(tiles, least_score=task.operating_threshold, progress=progress)
        prediction = task.prediction(case_name(path), space, found, painted=False)
        return self._write(prediction, path, file.space, make_folder(folder), format)

    def parts_of_file(self, model: Model[SegmentTask], path: Path, *, options: Mapping[str, Any]) -> int:
        """The tiles of a very large OME-Zarr image, of which every process can read windows."""
        if split_dataset(path)[0].suffix != ".zarr":
            return 0
        file = open_image(path, **model.reading(path, options))
        if not _in_pieces(file, model):
            return 0
        prepared = PreparedFile(file, model.bundle.preprocess)
        task = model.task.sized(prepared, prepared.space)
        return 0 if task.fits_a_tile(prepared.space) else len(task.tiles(prepared, prepared.space))

    def predict_parts(
        self, model: Model[SegmentTask], path: Path, parts: Path, numbers: range, *, options: Mapping[str, Any]
    ) -> None:
        """Detect in some of the tiles."""
        file, read, space = self._source(model, path, options)
        task = model.task.sized(read, space)
        tiles = task.tiles(read, space, state=parts, key=_key(file, model, options))
        for number in numbers:
            tiles[number]

    def _source(
        self, model: Model[SegmentTask], path: Path, options: Mapping[str, Any]
    ) -> tuple[ImageFile, Callable[[tuple[slice, ...]], Any], Space]:
        """An image, what reads windows of it as the network wants them, and their grid."""
        reading = model.reading(path, options)
        file = open_image(path, **reading)
        model.check_image(str(path), file.space.ndim, file.channels)
        if _in_pieces(file, model):
            prepared = PreparedFile(file, model.bundle.preprocess)
            return file, prepared, prepared.space
        whole = model.bundle.preprocess(model.sample(path, **reading))
        return file, lambda window: whole.image[(slice(None), *window)], whole.space

    def write(self, prediction: InstancePrediction, sample: Sample, folder: Path, format: str) -> Path:
        """The label volume on the image's own grid, a table of the instances, and their masks."""
        return self._write(prediction, as_path(sample.source), sample.space, make_folder(folder), format)

    @staticmethod
    def _write(prediction: InstancePrediction, source: Path, space: Space, folder: Path, format: str) -> Path:
        image = source if format == "ome.zarr" and source.suffix == ".zarr" and source.is_dir() else None
        return write_instances(prediction, folder, format=format, space=space, image=image)[0]

    def add_results(
        self, report: Report, task: SegmentTask, evaluation: Evaluation[InstancePrediction], history: History
    ) -> None:
        """Scores, curves, and the cases to look at."""
        cases = evaluation.cases
        samples = OnDemand(len(cases), lambda index: self.truth_of(cases, index))
        pages.add_results(report, task, replace(evaluation, cases=samples))


def _packed(instances: Instances) -> Instances:
    """The same with masks of one bit per voxel."""
    crops = instances.crops
    return (
        instances
        if isinstance(crops, PackedCrops)
        else replace(instances, crops=PackedCrops.pack(crops, instances.ndim))
    )


def _in_pieces(file: ImageFile, model: Model[SegmentTask]) -> bool:
    """Whether an image is never read as a whole."""
    task: Any = model.task
    large = prod(file.space.shape) > _WHOLE_VOXELS
    return large and bool(task.tile_size) and PreparedFile.fits(model.bundle.preprocess)


def _key(file: ImageFile, model: Model[SegmentTask], options: Mapping[str, Any]) -> str:
    """What finished tiles depend on beside their grid."""
    chosen = json.dumps(model.reading(file.path, options), sort_keys=True, default=str)
    return image_key(file, f"{model.digest()} {chosen}")


def _anchors(settings: Mapping[str, Any], dataset: SampleSource, levels: int, transform: Transform) -> dict[str, Any]:
    """Settings of the detector's anchors, with sizes for each level in voxels of what the network sees."""
    asked = {"sizes": None, "unit": "voxel", "per_level": 1} | dict(settings)
    sizes, unit, per_level = (asked.pop(name) for name in ("sizes", "unit", "per_level"))
    return asked | {"sizes": _anchor_sizes(sizes, unit, per_level, dataset, levels, transform)}


def _anchor_sizes(
    sizes: Any, unit: str, per_level: int, dataset: SampleSource, levels: int, transform: Transform
) -> Any:
    check_choice("model.anchors.unit", unit, ANCHOR_UNITS, ConfigError)
    if sizes == "auto":
        cases = [dataset[index] for index in range(min(len(dataset), _ANCHOR_CASES))]
        boxes = [case.boxes for case in cases if case.boxes is not None]
        pieces = [None if case.masks is None else in_pieces(case.masks.numpy()) for case in cases]
        if pieces[0] is not None and all(pieces):
            log.warning("%s: %s", cases[0].source, pieces[0])
        if not any(len(box) for box in boxes):
            raise DataError(f"{cases[0].source}: no instances in the training cases; set model.anchors.sizes")
        seen = [_as_seen(case.boxes, case.space.shape, transform) for case in cases if case.boxes is not None]
        return anchors_for(torch.cat(seen), levels, per_level)
    if unit == "voxel" or sizes is None:
        return sizes
    first = dataset[0].space
    factors = zip(transform.resized_shape(first.shape), first.shape, strict=True)
    spacing = [step * size / new for step, (new, size) in zip(first.spacing, factors, strict=True)]
    return [
        [
            [length / step for length, step in zip(per_axis(size, len(spacing), "anchors.sizes"), spacing, strict=True)]
            for size in level
        ]
        for level in sizes
    ]


def _in_voxels(sample: Sample) -> Sample:
    """A sample on a grid of 1 mm."""
    return sample.replace(space=Space.from_spacing(sample.space.shape))


def _as_seen(boxes: torch.Tensor, shape: Sequence[int], transform: Transform) -> torch.Tensor:
    """Boxes of an image in voxels of what the network sees of it."""
    return resize_boxes(boxes, shape, transform.resized_shape(shape), low=transform.low)

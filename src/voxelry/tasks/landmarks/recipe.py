"""The landmark task in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from voxelry.bundle.backbone import pretraining_of
from voxelry.bundle.pretrained import Pretrained
from voxelry.core.errors import ConfigError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.sample import Sample
from voxelry.io import POINT_FORMATS, write_landmarks
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.landmarks import report as pages
from voxelry.tasks.landmarks.demo import DEMO
from voxelry.tasks.landmarks.predict import LandmarkPrediction, to_landmark_set
from voxelry.tasks.landmarks.task import LandmarkTask
from voxelry.tasks.recipe import DenseRecipe, History, make_folder
from voxelry.viz.report import Report

__all__ = ["LandmarkRecipe"]


class LandmarkRecipe(DenseRecipe[LandmarkTask, LandmarkPrediction]):
    """Named points: a heatmap per landmark, files of points."""

    task = LandmarkTask
    needs = ("landmarks", "labels")
    truth = ("landmarks",)
    required = "landmarks"
    bordered = True
    stored = (LandmarkPrediction, Space)
    demo = DEMO
    adjustable = (
        "task.decoder",
        "task.window",
        "task.tile_size",
        "task.tile_overlap",
        "task.refine",
        "task.coarse",
        "task.ensemble_shift",
        "task.ensemble_flips",
        "task.original_metrics",
    )

    @property
    def formats(self) -> tuple[str, ...]:
        """Those of points that can be written."""
        return tuple(name for name, chosen in POINT_FORMATS.items() if chosen.format is not None)

    def out_channels(self, sample: Sample, config: DictConfig) -> int:
        """A map per landmark, and the classes of the labels where those are learned, too."""
        if sample.landmarks is None:
            raise ConfigError(
                f"{sample.source}: no landmarks, which task=landmarks needs; expected volumes/NAME.* with "
                "landmarks/NAME.*, or another layout of docs/data.md that has them"
            )
        return len(sample.landmarks) + int(config.task.get("label_classes", 0))

    def in_channels(self, sample: Sample, config: DictConfig) -> int:
        """The image's, and the distances to its borders where the data carry these."""
        return super().in_channels(sample, config) + (0 if sample.borders is None else len(sample.borders))

    def image_channels(self, task: LandmarkTask) -> int:
        """Those of the network without the distances to the borders."""
        return super().image_channels(task) - (0 if task.borders is None else 2 * task.ndim)

    def pretraining(self, config: DictConfig) -> str | None:
        """A U-Net's, or that of the backbone."""
        return pretraining_of(config) if "backbone" in config.model else "pretrain"

    def settings(self, config: DictConfig, dataset: VolumeDataset, pretrained: Pretrained | None) -> dict[str, Any]:
        """The names of the points; tiles as large as the patches; the range of values of the pretraining; borders."""
        settings: dict[str, Any] = {"landmark_names": dataset.landmark_names, "borders": config.data.get("borders")}
        patches = getattr(dataset, "patches", None)
        if patches is not None and config.task.tile_size is None:
            # trained on windows of this size, so whole volumes are predicted by tiles of it
            settings["tile_size"] = patches.size
        if config.task.presence == "auto":
            # a tile without a landmark has to know it
            settings["presence"] = patches is not None
        if pretrained is not None:
            settings["input_range"] = pretrained.input_range
        return settings

    def landmark_names(self, task: LandmarkTask) -> Sequence[str] | None:
        """Those that the task finds."""
        return tuple(task.names)

    def check(self, task: LandmarkTask, dataset: VolumeDataset) -> None:
        """Refuse cases with other points than the task's, in whatever order.

        Raises:
            DataError: names the first of them, and both lists of names.
        """
        dataset.check()

    def write(self, prediction: LandmarkPrediction, sample: Sample, folder: Path, format: str) -> Path:
        """A file of points in the world of the image."""
        path = make_folder(folder) / f"{sample.name}.{format}"
        return write_landmarks(path, to_landmark_set(prediction), space=sample.space, format=format)

    def add_results(
        self, report: Report, task: LandmarkTask, evaluation: Evaluation[LandmarkPrediction], history: History
    ) -> None:
        """Errors, uncertainty and the cases to look at."""
        pages.add_results(report, task, evaluation)

"""The translation task in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from voxelry.bundle.model import Model
from voxelry.bundle.pretrained import Pretrained
from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError, SettingError
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.degrade import Degrade
from voxelry.data.degrade.dataset import DegradedDataset
from voxelry.data.demands import Demands
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.find import find_cases, find_pairs
from voxelry.data.pairs import PairDataset
from voxelry.data.parts import SampleSource, named_cases
from voxelry.data.preprocess import move
from voxelry.data.preprocess.normalise import check_values
from voxelry.data.sample import Sample
from voxelry.models.memory import check_memory
from voxelry.models.transfer import TransferReport
from voxelry.tasks.base import Row
from voxelry.tasks.evaluate import Evaluation, measured
from voxelry.tasks.recipe import DenseRecipe, History, make_folder
from voxelry.tasks.translate import report as pages
from voxelry.tasks.translate.demo import DEMO
from voxelry.tasks.translate.options import OPTIONS
from voxelry.tasks.translate.predict import TranslatePrediction, write_translation
from voxelry.tasks.translate.targets import input_channels
from voxelry.tasks.translate.task import TranslateTask
from voxelry.viz.report import Report

__all__ = ["TranslateRecipe", "over_calls"]

_STEPS = (1, 2, 4, 8)  # that the report compares, where the model was trained for them
_CURVE_CASES = 16  # that are translated again for it


class TranslateRecipe(DenseRecipe[TranslateTask, TranslatePrediction]):
    """Pairs of images, a network that is given one and the way to the other, translated images."""

    task = TranslateTask
    demo = DEMO
    stored = (TranslatePrediction, Space)
    beside = _CURVE_CASES
    alike = ("pretrain",)
    options = OPTIONS
    adjustable = (
        "task.steps",
        "task.sampler",
        "task.eta",
        "task.samples",
        "task.spread_samples",
        "task.tile_size",
        "task.tile_overlap",
        "task.data_range",
        "task.seed",
    )

    def demands(self) -> Demands:
        """Images with something in them; landmarks aren't read."""
        return Demands(tuple(word for word in self.truth if word != "landmarks"), self.required, contrast=True)

    def in_channels(self, sample: Sample, config: DictConfig) -> int:
        """Conditions, what is told of them, and the image on its way."""
        return input_channels(
            len(sample.image), self.out_channels(sample, config), sample.ndim, tells_place=sample.context is not None
        )

    def out_channels(self, sample: Sample, config: DictConfig) -> int:
        """As many as the target has."""
        if sample.target is None:
            raise ConfigError(
                f"data: {sample.source or sample.name} has no target; expected pairs (data=pairs) or data=degraded"
            )
        return int(sample.target.shape[0])

    def network(
        self, config: DictConfig, dataset: SampleSource, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """The configured network, if a training step of it fits the memory.

        Raises:
            ConfigError: it doesn't; says what would.
        """
        network, report = super().network(config, dataset, pretrained)
        sample = dataset[0]
        check_memory(
            network,
            sample.space.shape,
            in_channels=self.in_channels(sample, config),
            batch=config.data.batch_size,
            copies=2 if config.task.baseline and config.task.mode != "regression" else 1,
            accelerator=config.trainer.accelerator,
            precision=str(config.trainer.precision),
        )
        return network, report

    def settings(self, config: DictConfig, dataset: SampleSource, pretrained: Pretrained | None) -> dict[str, Any]:
        """Channels and names of the data; tiles as large as the patches."""
        sample = dataset[0]
        assert sample.target is not None  # the network was built for it
        names = getattr(dataset.cases[0], "contrasts", ()) if hasattr(dataset, "cases") else ()
        settings: dict[str, Any] = {
            "conditions": len(sample.image),
            "targets": len(sample.target),
            "context": sample.context is not None,
            "condition_names": list(names) if len(names) == len(sample.image) else None,
        }
        pairs: Any = dataset
        grid = pairs.target_grid() if getattr(dataset, "resample", False) else None
        settings["target_grid"] = None if grid is None else grid.settings()
        if config.task.tile_size is None and getattr(dataset, "patches", None) is not None:
            settings["tile_size"] = list(sample.image.shape[1:])
        return settings

    def image_channels(self, task: TranslateTask) -> int:
        """The conditions."""
        return int(task.conditions)

    def cases(self, model: Model[TranslateTask], root: Path, layout: str, file: Path | None, **reading: Any) -> Any:
        """The pairs of a folder, or its volumes degraded as in the training.

        Raises:
            ConfigError: the bundle doesn't say how its training data were made.
        """
        record = model.bundle.config.get("training") or {}
        data = record.get("data") or {}
        common: dict[str, Any] = {
            "preprocess": model.bundle.preprocess,
            "need": self.truth,
            "seed": int(record.get("seed", 0)),
        }
        options = reading.get("options") or data.get("options")
        if data.get("degrade"):
            found = named_cases(find_cases(root, layout, options=options), file)
            return DegradedDataset(found, degrade=Degrade(**data["degrade"]), **common)
        if data.get("pairs") is None:
            raise ConfigError(f"{model.bundle.path}: training.data: expected pairs or degrade, to make pairs by")
        pairs = dict(data["pairs"])
        resample = bool(pairs.pop("resample", False))
        paired = named_cases(find_pairs(root, layout, options=options, **pairs), file)
        return PairDataset(paired, resample=resample, **common)

    def on_target_grid(self, task: TranslateTask, sample: Sample) -> Sample:
        """An image as fine as its answer is to be: thick slices as thin ones, where the training had such pairs."""
        return sample if task.target_grid is None else move(sample, task.target_grid.of(sample.space))

    def read_contrasts(
        self, task: TranslateTask, files: Mapping[str, Path | str | None], options: Mapping[str, Any]
    ) -> Sample:
        """The conditions of one case from a file for each; those that aren't named are absent.

        Raises:
            SettingError: a name that the model doesn't know.
            DataError: files on different grids.
        """
        names = getattr(task, "condition_names", None)
        if not names:
            raise SettingError("contrast: the model has no names for its conditions; expected a single image")
        for name in files:
            check_choice("contrast", name, names)
        paths = [None if files.get(name) is None else as_path(str(files[name])) for name in names]
        there = [path for path in paths if path is not None]
        if not there:
            raise SettingError(f"contrast: expected at least one of {', '.join(names)}")
        case = PairCase.of(case_name(there[0]), paths, None, contrasts=tuple(names), options=dict(options))
        dataset = PairDataset([case])
        dataset.check()
        return dataset.read(case)

    def predict_file(
        self,
        model: Model[TranslateTask],
        path: Path,
        folder: Path,
        *,
        format: str,
        options: Mapping[str, Any],
        **by_parts: Any,
    ) -> Path:
        """Translate one file, or the files of `options["contrast"]`, name to path, of which `path` is one."""
        own, reader = self.split(options)
        sample = model.sample(own.pop("contrast", None) or path, **reader)
        check_values(sample.image, path)
        return self.write(self.predict(model, sample, None, own), sample, folder, format)

    def write(self, prediction: TranslatePrediction, sample: Sample, folder: Path, format: str) -> Path:
        """The translated image, in physical values on the sample's grid, and its spread where there is one."""
        return write_translation(prediction, make_folder(folder), suffix=f".{format}", space=sample.space)[0]

    def add_results(
        self, report: Report, task: TranslateTask, evaluation: Evaluation[TranslatePrediction], history: History
    ) -> None:
        """Figures beside regression's, what more calls buy, the spread's promise, and the cases to look at."""
        beside = evaluation.beside
        if beside is None:
            cases = evaluation.cases
            each = [self.measured_beside(task, cases, index) for index in range(min(self.beside, len(cases)))]
            beside = {way: [row for rows in each for row in rows[way]] for way in each[0]}
        pages.add_results(report, task, evaluation, calls=over_calls(task, beside))

    def measured_beside(self, task: TranslateTask, dataset: SampleSource, index: int) -> dict[str, list[Row]]:
        """The rows of a sample in each number of steps that the model was trained for."""
        path, found = task.path, {}
        try:
            task.quick = True
            for steps in _STEPS:
                try:
                    task.path = path.request(steps)
                except SettingError:
                    continue  # not trained for
                found[str(steps)] = next(measured(task, dataset, [index]))[0]
        finally:
            task.path, task.quick = path, False
        return found


def over_calls(task: TranslateTask, beside: Mapping[str, list[Row]]) -> list[dict[str, Any]]:
    """The summary of the cases in each number of steps that they were measured in.

    Args:
        task: that they were measured with.
        beside: see `TranslateRecipe.measured_beside`.
    """
    found = []
    for steps, rows in beside.items():
        path = task.path.request(int(steps))
        found.append({"sampler": path.settings()["sampler"], **task.summary(rows), "calls": path.calls})
    return found

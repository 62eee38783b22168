"""Everything the program must know of a task beyond `tasks.base.Task`: its data, network, files and report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from voxelry.bundle.backbone import configured_backbone
from voxelry.bundle.model import Model, Readable
from voxelry.bundle.pretrained import Pretrained
from voxelry.bundle.registry import TASKS, recipe_named
from voxelry.core.errors import CheckpointError, ConfigError, FileError, SettingError
from voxelry.core.option import Option
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.dataset import VolumeDataset
from voxelry.data.demands import Demands
from voxelry.data.layouts.find import find_cases
from voxelry.data.parts import Splits, named_cases
from voxelry.data.sample import Batch, Sample
from voxelry.io import image_formats, open_image
from voxelry.models.networks import input_channels
from voxelry.models.transfer import TransferReport, best_transfer, transfer
from voxelry.tasks.base import Row, Task
from voxelry.tasks.demo import Demo
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.options import takers
from voxelry.tasks.sources import SOURCES
from voxelry.viz.report import Report

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["DenseRecipe", "History", "Recipe", "fitting", "make_folder"]


TaskT = TypeVar("TaskT", bound=Task[Any, Any])
PredictionT = TypeVar("PredictionT")

History = Sequence[Mapping[str, float]]
"""The summaries of the validations of a training, each with its `step`."""


class Recipe(ABC, Generic[TaskT, PredictionT]):
    """One task, as the program sees it; `bundle.registry` lists them all.

    Attributes:
        task: its class.
        needs: what a dataset reads beside the images to learn from, see `data.dataset.VolumeDataset`.
        truth: what it reads to measure predictions.
        required: what every case must have to be learned from: `landmarks`, `labels`, `instances` or nothing.
        adjustable: settings of a bundle, `task.` or `network.` before their names, that only say how the trained model
            is used, and so can be changed for a prediction, see `bundle.bundle.read_bundle`.
        options: what a prediction may be asked for beside the image, see `core.option`.
        needed: the option without which nothing is predicted, such as a click.
        instead: options that together say it, too.
        adaptable: whether an adapter can be trained on a bundle of it (`adapter={...}`).
        demo: what `voxelry demo` shows of it, where it has one.
        bordered: whether the network can be told how far the borders of an image are (`data.borders`).
        stored: what `to_store` answers is made of, beside plain values and arrays; without any, the predictions of an
            evaluation are not kept but made again where somebody looks at one.
        beside: of so many samples of a dataset, its first, `measured_beside` is asked.
        windowed: whether a run that learns from windows is measured on the middle ones of held-out cases, as nothing is
            asked of whole images.
    """

    task: type[TaskT]
    needs: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    required: str | None = None
    adjustable: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    needed: str | None = None
    instead: tuple[str, ...] = ()
    adaptable: bool = False
    demo: Demo | None = None
    bordered: bool = False
    windowed: bool = False
    stored: tuple[type, ...] = ()
    beside: int = 0

    @property
    def name(self) -> str:
        """What bundles, checkpoints and the command line call the task."""
        return self.task.name

    @property
    def formats(self) -> tuple[str, ...]:
        """Suffixes that predictions can be written in, the default first; those of images unless told otherwise."""
        return image_formats()

    def split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of a prediction: those of the task, and those of the image's reader.

        Raises:
            SettingError: an option of other tasks, or one that is needed isn't there.
        """
        names = {option.name for option in self.options}
        own = {name: value for name, value in options.items() if name in names and value is not None}
        reading = {name: value for name, value in options.items() if name not in names}
        for name in reading:
            if others := takers(name):
                raise SettingError(f"{name}: expected with a model for {' or '.join(others)}, not {self.name}")
        said = bool(self.instead) and all(own.get(name, False) is not False for name in self.instead)
        if self.needed is not None and self.needed not in own and not said:
            about = next(option.help for option in self.options if option.name == self.needed)
            raise SettingError(f"{self.needed}: expected {about}")
        return own, reading

    def choices(self, task: TaskT) -> dict[str, dict[Any, str]]:
        """The values of options that a trained task takes a few of, and what each is called; by the option's name."""
        return {}

    def demands(self) -> Demands:
        """What a folder is looked at for before a training with the default settings."""
        return Demands(self.needs, self.required)

    def data(self, config: DictConfig, *, ndim: int, augment: DictConfig | None = None, seed: int = 0) -> Splits:
        """What a run trains and is measured on; arguments and errors as `engine.data.build_data`."""
        found: Splits = SOURCES[config.source](config, ndim=ndim, recipe=self, augment=augment, seed=seed)
        return found

    @abstractmethod
    def network(
        self, config: DictConfig, dataset: Any, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """The network of a run, and what was taken over from pretrained weights.

        Args:
            config: of the whole run; `config.model` describes the network.
            dataset: the training cases.
            pretrained: weights to start from.

        Raises:
            CheckpointError: none of the weights fits.
        """

    def pretraining(self, config: DictConfig) -> str | None:
        """The experiment, without its rank, whose weights `data.unlabelled` begins a run with; None: there is none."""
        return None

    def settings(self, config: DictConfig, dataset: Any, pretrained: Pretrained | None) -> dict[str, Any]:
        """Keywords of the task that the data or the pretrained weights decide, beside those of `config.task`."""
        return {}

    def settle(self, config: DictConfig, splits: Any) -> None:
        """Fill in what `config.task` leaves to the data, before the network is made; nothing by default.

        Args:
            splits: `data.parts.Splits`.

        Raises:
            DataError: the data don't have what the settings ask for.
        """
        return

    def check_adapter(self, config: DictConfig) -> None:
        """Refuse an adapter where none can be trained.

        Raises:
            ConfigError: `config.adapter` is set, and the task has none.
        """
        if config.get("adapter") is not None and not self.adaptable:
            adaptable = " and ".join(name for name in TASKS if recipe_named(name).adaptable)
            raise ConfigError(
                f"adapter: the task {self.name} has none, only {adaptable} do; leave it out, and "
                "pretrained=BUNDLE goes on with all of the weights"
            )

    def prepare(self, task: TaskT, config: DictConfig, dataset: Any) -> None:
        """Change a new task before it is trained, such as by freezing its network; nothing by default."""
        return

    def finish(self, task: TaskT, splits: Splits, output: Path, data: Mapping[str, Any]) -> None:
        """Change a trained task before it is measured and written, and write what belongs beside the bundle.

        Args:
            data: what the bundle says of the cases.
        """
        return

    def truth_of(self, dataset: Any, index: int) -> Sample:
        """A case with what predictions of it are measured by, on the grid they are measured on."""
        sample: Sample = dataset[index]
        return sample

    def compared(
        self, predictions: list[PredictionT], batch: Batch, dataset: Any, index: int
    ) -> tuple[list[PredictionT], Batch]:
        """The predictions of one case, and the case, as they are measured; by default as the network sees it.

        Args:
            predictions: of the one sample of `batch`.
            dataset, index: where the case comes from.
        """
        return predictions, batch

    def measured_beside(self, task: TaskT, dataset: Any, index: int) -> Mapping[str, list[Row]]:
        """Rows of a sample measured in other ways, by a name of each way; none by default.

        For what a report shows of some cases beside the figures of all.
        """
        return {}

    def to_store(self, prediction: PredictionT) -> Any:
        """A prediction as `core.records` can write it, of the classes in `stored`; by default itself."""
        return prediction

    def from_store(self, stored: Any) -> PredictionT:
        """The prediction that `to_store` made that of."""
        prediction: PredictionT = stored
        return prediction

    def held_out(self, task: TaskT, volumes: VolumeDataset) -> Any:
        """Cases as the task is measured on them, by default the volumes."""
        return volumes

    def callbacks(self, output: Path) -> list[pl.Callback]:
        """What else watches the training; `output` is the run's folder."""
        return []

    def image_channels(self, task: TaskT) -> int:
        """Channels of the images that a trained task takes."""
        return input_channels(task.network)

    def on_target_grid(self, task: TaskT, sample: Sample) -> Sample:
        """An image as it was read, on the grid that the task answers on; by default its own."""
        return sample

    def read_contrasts(self, task: TaskT, files: Mapping[str, Any], options: Mapping[str, Any]) -> Sample:
        """One image from a file for each of its contrasts, by name.

        Args:
            options: for the files' reader.

        Raises:
            SettingError: the task takes single images.
        """
        raise SettingError(f"image: {self.name} takes one file for an image, got a mapping of {', '.join(files)}")

    def cases(self, model: Model[TaskT], root: Path, layout: str, file: Path | None, **reading: Any) -> Any:
        """The cases of a folder as a trained model is measured on them; see `engine.report.evaluate_folder`.

        An image whose header can't be read is refused where it is measured, so that it doesn't keep the others.
        """
        found = find_cases(root, layout, need_landmarks=self.required == "landmarks", **reading)
        found = named_cases(found, file)
        readable = []
        for number, case in enumerate(found):
            with suppress(FileError):
                header = open_image(case.image, **case.options)
                model.check_image(str(case.image), header.space.ndim, header.channels)
                readable.append(number)
        names = self.landmark_names(model.task)
        dataset = VolumeDataset(found, preprocess=model.bundle.preprocess, need=self.truth, landmark_names=names)
        if readable:
            self.check(model.task, dataset.part(readable))
        return self.held_out(model.task, dataset)

    def landmark_names(self, task: TaskT) -> Sequence[str] | None:
        """The points that a trained task is measured on, in their order; None: whatever the cases have."""
        return None

    def check(self, task: TaskT, dataset: VolumeDataset) -> None:
        """Refuse cases that a trained task can't be measured on.

        Raises:
            DataError: names the first of them.
        """
        return

    def predict(
        self, model: Model[TaskT], image: Readable, space: Space | None, options: Mapping[str, Any]
    ) -> PredictionT:
        """What a trained task makes of one image; arguments and errors as `Model.predict`."""
        own, reading = self.split(options)
        batch = collate([model.bundle.preprocess(model.sample(image, space, **reading))]).to(model.device)
        with torch.inference_mode():
            found: list[PredictionT] = model.task.predict(batch, **own)
        return found[0]

    def predict_file(
        self,
        model: Model[TaskT],
        path: Path,
        folder: Path,
        *,
        format: str,
        options: Mapping[str, Any],
        parts: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Predict one file and write the answer, nothing else, into a folder; see `Model.sample` and `write`.

        Args:
            parts: a folder where tasks that work part by part may keep what is done, for the same prediction after a
                kill; whoever gives it removes it when all is done.
            progress: called with the parts that are done and all of them, by tasks that work part by part.
        """
        own, reading = self.split(options)
        sample = model.sample(path, **reading)
        return self.write(self.predict(model, sample, None, own), sample, folder, format)

    def parts_of_file(self, model: Model[TaskT], path: Path, *, options: Mapping[str, Any]) -> int:
        """How many parts there are of a file that several processes may share; 0: one process predicts it.

        Raises:
            VoxelryError: the file can't be read.
        """
        return 0

    def predict_parts(
        self, model: Model[TaskT], path: Path, parts: Path, numbers: range, *, options: Mapping[str, Any]
    ) -> None:
        """Do some parts of a file, and keep them in the folder `parts`, where `predict_file` finds them.

        Raises:
            VoxelryError: as `predict_file`.
        """
        raise NotImplementedError(f"{self.name} has no parts of files")

    @abstractmethod
    def write(self, prediction: PredictionT, sample: Sample, folder: Path, format: str) -> Path:
        """Write a prediction for an image as it was read into a folder and answer the file.

        Args:
            format: one of `formats`.

        Raises:
            FileError: the folder can't be written.
        """

    @abstractmethod
    def add_results(self, report: Report, task: TaskT, evaluation: Evaluation[PredictionT], history: History) -> None:
        """What the task has to show of held-out cases.

        Args:
            evaluation: not empty.
            history: of its training; empty where that isn't known.
        """


class DenseRecipe(Recipe[TaskT, PredictionT]):
    """A task whose network answers a map of the image's size; pretrained weights bring their architecture along.

    Attributes:
        alike: other tasks whose networks answer the same, so that the last layer can be taken over from them.
    """

    alike: tuple[str, ...] = ()

    @abstractmethod
    def out_channels(self, sample: Sample, config: DictConfig) -> int:
        """Channels of the map, by a training sample.

        Raises:
            ConfigError: the sample lacks what the task learns from.
        """

    def in_channels(self, sample: Sample, config: DictConfig) -> int:
        """Channels that the network is given, by default the image's."""
        return int(sample.image.shape[0])

    def network(
        self, config: DictConfig, dataset: Any, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """What `config.model` describes, or a U-Net like the pretrained one.

        Of other pretrained networks the part is taken over that fits best, such as the backbone.

        Raises:
            CheckpointError: none of the weights fits, or they are no U-Net's and the configured network is one.
            ConfigError: the network needs a backbone and none is configured.
        """
        sample = dataset[0]
        channels = {
            "ndim": config.ndim,
            "in_channels": self.in_channels(sample, config),
            "out_channels": self.out_channels(sample, config),
        }
        if pretrained is not None and pretrained.is_unet:
            return self._continued(config, pretrained, sample, channels)
        if "backbone" in config.model:
            backbone = configured_backbone(config, sample, pretrained)
            own: Any = OmegaConf.to_container(config.model, resolve=True)
            network = get_class(own.pop("_target_"))(**{**own, **channels, "backbone": backbone})
        elif pretrained is None:
            network = instantiate(config.model, **channels, _convert_="all")
        else:
            raise CheckpointError(
                f"{pretrained.source}: holds a {pretrained.kind}; expected a U-Net, or model=backbone_heatmaps, which "
                "takes backbones over"
            )
        if pretrained is None:
            return network, None
        return network, fitting(best_transfer(network, pretrained.weights), pretrained)

    def _continued(
        self, config: DictConfig, pretrained: Pretrained, sample: Sample, channels: Mapping[str, int]
    ) -> tuple[nn.Module, TransferReport]:
        """A U-Net like the pretrained one, with its weights."""
        same = not pretrained.task or pretrained.task in (self.name, *self.alike)
        network = pretrained.build(config.model, **channels, same_answer=same)
        shown = pretrained.settings["in_channels"] == sample.image.shape[0]
        report = transfer(
            network,
            pretrained.weights,
            head=same,
            image_channels=pretrained.stem_channels,
            new_inputs="between" if same and self.alike else "after" if shown else None,
        )
        return network, fitting(report, pretrained)


def fitting(report: TransferReport, pretrained: Pretrained) -> TransferReport:
    """The report of a transfer that took anything over at all.

    Raises:
        CheckpointError: nothing was.
    """
    if not report.matched:
        raise CheckpointError(f"{pretrained.source}: none of its weights fits the configured network")
    return report


def make_folder(folder: Path) -> Path:
    """The folder, made where it isn't there.

    Raises:
        FileError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(folder, f"the folder can't be made: {error.strerror or error}") from error
    return folder

"""The reconstruction task in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from voxelry.bundle.model import Model, Readable
from voxelry.bundle.pretrained import Pretrained
from voxelry.bundle.template import template_record
from voxelry.core.errors import CheckpointError, ConfigError, SettingError
from voxelry.core.option import Option
from voxelry.core.settings import keywords
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.demands import Demands
from voxelry.data.parts import Splits
from voxelry.data.prepare.source import check_template
from voxelry.data.prepare.template import TEMPLATE
from voxelry.data.sample import Sample
from voxelry.data.segment_names import check_numbers
from voxelry.data.slices.dataset import SliceDataset
from voxelry.data.slices.sources import SliceSource, VolumeSlices
from voxelry.io.meshes import MESH_FORMATS
from voxelry.models.networks import build_network
from voxelry.models.transfer import TransferReport, transfer
from voxelry.tasks.demo import Demo
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.recipe import History, Recipe, fitting
from voxelry.tasks.reconstruct import report as pages
from voxelry.tasks.reconstruct.demo import DEMO
from voxelry.tasks.reconstruct.options import OPTIONS
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.prepared import check_standard, held_out_axes, prepared_source, reads_prepared
from voxelry.tasks.reconstruct.prompt import reconstruct, write_reconstruction
from voxelry.tasks.reconstruct.prompts import evaluation_items
from voxelry.tasks.reconstruct.targets import mean_shape, organ_shapes
from voxelry.tasks.reconstruct.task import ReconstructTask
from voxelry.viz.report import Report

__all__ = ["ReconstructRecipe", "check_grid"]

_PRIOR_GRID = 64


class ReconstructRecipe(Recipe[ReconstructTask, ReconstructPrediction]):
    """Shapes from slices: meshes, label volumes and distances.

    Attributes:
        starts: networks whose weights a training may start from.
    """

    task = ReconstructTask
    needs = ("labels",)
    truth = ("labels",)
    required = "labels"
    demo: Demo | None = DEMO
    options: tuple[Option, ...] = OPTIONS
    needed = "click"
    instead = ("slice", "mask")
    adjustable: tuple[str, ...] = ("task.evaluation", "task.contour", "task.recentre", "task.mirror")
    adaptable = True
    stored = (ReconstructPrediction, Space)
    starts: tuple[str, ...] = ("shape_net",)

    @property
    def formats(self) -> tuple[str, ...]:
        """Those of meshes."""
        return tuple(suffix.removeprefix(".") for suffix in MESH_FORMATS)

    def choices(self, task: ReconstructTask) -> dict[str, dict[Any, str]]:
        """The organs, where there are several."""
        if len(task.organs) < 2:
            return {}
        return {"label": {organ[0]: name for organ, name in zip(task.organs, task.names, strict=True)}}

    def demands(self) -> Demands:
        """Cases that show the first organ, which is learned where nothing else is said."""
        return Demands(self.needs, self.required, (1,))

    def network(
        self, config: DictConfig, dataset: SliceDataset, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """The configured network with the training cases' mean shapes, its weights taken over where there are any.

        With `config.adapter` the network is the pretrained one, frozen, and what is trained is an adapter on it.

        Raises:
            CheckpointError: pretrained weights of another kind of network.
            ConfigError: an adapter without weights to adapt, or for a grid of another size.
        """
        adapted = config.get("adapter") is not None
        network: Any
        report = None
        if adapted and pretrained is None:
            raise ConfigError("adapter: expected pretrained=BUNDLE, the network to adapt")
        if pretrained is not None and pretrained.kind not in self.starts:
            wanted = " or ".join(self.starts)
            raise CheckpointError(f"{pretrained.source}: holds a {pretrained.kind}; expected a {wanted}")
        if pretrained is not None and adapted:
            check_grid(config, pretrained)
            network = build_network(pretrained.kind, pretrained.settings)
            if len(dataset.organs) > network.classes:
                raise ConfigError(
                    f"adapter: {pretrained.source} knows {network.classes} organs; expected no more in "
                    f"data.slices.organs, got {len(dataset.organs)}"
                )
        else:
            channels = int(dataset[0].image.shape[1])
            network = instantiate(
                config.model, ndim=config.ndim, in_channels=channels, classes=len(dataset.organs), _convert_="all"
            )
        if pretrained is not None:
            report = fitting(transfer(network, pretrained.weights), pretrained)
        if not adapted:
            _set_mean_shapes(network, dataset)
        return network, report

    def settings(self, config: DictConfig, dataset: SliceDataset, pretrained: Pretrained | None) -> dict[str, Any]:
        """The organs, what they are called, the edges of their frames, and how slices are shown."""
        return {
            "organ_names": config.task.organ_names or [dataset.source.organ_name(organ) for organ in dataset.organs],
            "organs": [list(organ) for organ in dataset.organs],
            "edges": [dataset.edges[organ[0]] for organ in dataset.organs],
            "image_size": dataset.views.image_size,
            "view": dataset.views.view,
            "slices": dataset.slices[1],
            "evaluation": dict(config.data.slices.get("evaluation") or {}),
        }

    def prepare(self, task: ReconstructTask, config: DictConfig, dataset: SliceDataset) -> None:
        """Freeze the network and add the adapter of `config.adapter`, which the mean shapes then belong to."""
        if config.get("adapter") is None:
            return
        settings = keywords(config.adapter)
        head_rate = settings.pop("head_rate", None)
        task.adapt(str(settings.pop("name", "adapter")), settings, head_rate=head_rate)
        _set_mean_shapes(task.network, dataset)

    def finish(self, task: ReconstructTask, splits: Splits, output: Path, data: Mapping[str, Any]) -> None:
        """Write an adapter beside the bundle, into whose weights it is merged."""
        if task.adapters is not None:
            record: dict[str, Any] = {"task": {"name": self.name, **task.settings()}}
            record |= {"preprocess": splits.preprocess.settings(), **template_record(splits.template)}
            record["data"] = dict(data)
            if (calibration := dict(task.named_children()).get("calibration")) is not None:
                record["calibration"] = {name: value.item() for name, value in calibration.state_dict().items()}
            template = splits.template
            beside = {} if template is None else {TEMPLATE: template.write}
            task.adapters.save(output / "adapter", record=record, beside=beside)
            task.merge_adapter()

    def cases(self, model: Model[ReconstructTask], root: Path, layout: str, file: Path | None, **reading: Any) -> Any:
        """As `Recipe.cases`; of a prepared folder the slices that it holds, which need no options.

        Raises:
            DataError: cases that don't lie in the frame that the model was trained in.
            SettingError: options for a prepared folder.
        """
        check_template(root, model.bundle.template)
        if not reads_prepared(root, layout):
            return super().cases(model, root, layout, file, **reading)
        if any(reading.values()):
            raise SettingError(f"--option: {root} was prepared by voxelry; its files say everything themselves")
        task = model.task
        source = prepared_source(root, task.organs, file)
        check_standard(source, model.bundle.preprocess)
        return self._still(task, source, **held_out_axes(source))

    def check(self, task: ReconstructTask, dataset: VolumeDataset) -> None:
        """Refuse cases whose organs have other numbers than the task's."""
        if not dataset.reads_own():
            alone = [(organ[0], name) for organ, name in zip(task.organs, task.names, strict=True) if len(organ) == 1]
            check_numbers(dataset.cases, {number: name for number, name in alone if name != str(number)})

    def held_out(self, task: ReconstructTask, volumes: VolumeDataset) -> SliceDataset:
        """Every organ of every case, with several slices and clicks (`evaluation`), always the same."""
        return self._still(task, VolumeSlices(volumes))

    @staticmethod
    def _still(task: ReconstructTask, source: SliceSource, **settings: Any) -> SliceDataset:
        return SliceDataset(
            source,
            organs=task.organs,
            edge={organ[0]: edge for organ, edge in zip(task.organs, task.edges, strict=True)},
            min_pixels=1,
            mask=0.0,
            image_size=task.image_size,
            view=task.view,
            grid=int(task.network.grid),
            truth=True,
            every_organ=True,
            **{**evaluation_items(task.evaluation), **settings},
        )

    def predict(
        self, model: Model[ReconstructTask], image: Readable, space: Space | None, options: Mapping[str, Any]
    ) -> ReconstructPrediction:
        """The organ that is clicked on; see `tasks.reconstruct.prompt.reconstruct`."""
        self.split(options)
        if isinstance(image, Mapping):
            raise SettingError(f"image: {self.name} takes one file for an image, got a mapping of {', '.join(image)}")
        return reconstruct(model, image, space=space, **options)

    def predict_file(
        self,
        model: Model[ReconstructTask],
        path: Path,
        folder: Path,
        *,
        format: str,
        options: Mapping[str, Any],
        **by_parts: Any,
    ) -> Path:
        """Reconstruct the organ that is clicked on in one file; see `tasks.reconstruct.prompt.reconstruct`."""
        return write_reconstruction(self.predict(model, path, None, options), folder, format)

    def write(self, prediction: ReconstructPrediction, sample: Sample, folder: Path, format: str) -> Path:
        """Mesh, label volume, distances and numbers; the mesh is answered."""
        return write_reconstruction(prediction, folder, format)

    def add_results(
        self, report: Report, task: ReconstructTask, evaluation: Evaluation[ReconstructPrediction], history: History
    ) -> None:
        """Scores beside the baselines', and the cases to look at."""
        pages.add_results(report, task, evaluation)


def check_grid(config: DictConfig, pretrained: Pretrained) -> None:
    """Refuse shapes on another grid than that of the network to go on with.

    Raises:
        ConfigError: `model.grid` is another one.
    """
    grid = pretrained.settings.get("grid", config.model.get("grid"))
    if config.model.get("grid") not in (None, grid):
        raise ConfigError(f"model.grid: expected {grid}, as {pretrained.source} has it, got {config.model.grid}")


def _set_mean_shapes(network: Any, dataset: SliceDataset) -> None:
    """Give a network the training cases' mean shape of every organ."""
    for place, organ in enumerate(dataset.organs):
        shapes = organ_shapes(dataset.source, organ, dataset.views.truncation)
        network.set_mean_shape(
            mean_shape(shapes, dataset.edges[organ[0]], _PRIOR_GRID, dataset.views.truncation), place
        )

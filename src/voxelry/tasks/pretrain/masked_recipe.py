"""Masked-autoencoder pretraining in the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from voxelry.data.sample import Sample
from voxelry.tasks.recipe import Kind, fitting, make_folder

if TYPE_CHECKING:
    from voxelry.bundle.pretrained import Pretrained
    from voxelry.data.parts import SampleSource
    from voxelry.models.transfer import TransferReport
    from voxelry.tasks.evaluate import Evaluation
    from voxelry.viz.report import Report

__all__ = ["MaskedPretrainKind"]


class MaskedPretrainKind(Kind):
    """Images alone, most of each hidden: a network that completes them."""

    name = "masked_pretrain"
    target = "voxelry.tasks.pretrain.masked.MaskedPretrainTask"
    formats = ("nii.gz",)

    def network(
        self, config: DictConfig, dataset: Any, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """The autoencoder that `config.model` describes, begun from another one or from a bare Hiera."""
        from voxelry.models.transfer import transfer

        channels = int(dataset[0].image.shape[0])
        network = instantiate(config.model, ndim=config.ndim, in_channels=channels, _convert_="all")
        if pretrained is None:
            return network, None
        whole = any(name.startswith("encoder.") for name in pretrained.weights)
        report = transfer(network if whole else network.encoder, pretrained.weights)
        return network, fitting(report, pretrained)

    def write(self, prediction: Any, sample: Sample, folder: Path, format: str) -> Path:
        """The masked and the completed image as NIfTI."""
        from voxelry.tasks.pretrain.masked import write_completion

        return write_completion(prediction, make_folder(folder), suffix=f".{format}")[-1]

    def add_results(
        self,
        report: Report,
        task: Any,
        evaluation: Evaluation,
        held_out: SampleSource,
        history: Sequence[Mapping[str, float]],
    ) -> None:
        """What was hidden of each image and what the network made of it."""
        from voxelry.tasks.pretrain.masked_report import add_masked_reconstructions

        add_masked_reconstructions(report, task, evaluation.predictions, evaluation.rows)

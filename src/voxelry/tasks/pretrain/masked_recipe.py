"""Masked-autoencoder pretraining in the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from voxelry.bundle.pretrained import Pretrained
from voxelry.core.space import Space
from voxelry.data.demands import Demands
from voxelry.data.sample import Sample
from voxelry.models.transfer import TransferReport, transfer
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.pretrain.masked import MaskedPrediction, MaskedPretrainTask
from voxelry.tasks.pretrain.masked_report import add_masked_reconstructions
from voxelry.tasks.pretrain.predict import write_images
from voxelry.tasks.pretrain.recipe import FRACTIONS
from voxelry.tasks.recipe import History, Recipe, fitting, make_folder
from voxelry.viz.report import Report

__all__ = ["MaskedPretrainRecipe"]


class MaskedPretrainRecipe(Recipe[MaskedPretrainTask, MaskedPrediction]):
    """Images alone, most of each hidden: a network that completes them."""

    task = MaskedPretrainTask
    windowed = True
    stored = (MaskedPrediction, Space)

    def demands(self) -> Demands:
        """Nothing but images; no case is kept for a test."""
        return Demands((), fractions=FRACTIONS)

    def network(
        self, config: DictConfig, dataset: Any, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """The autoencoder that `config.model` describes, begun from another one or from a bare Hiera."""
        channels = int(dataset[0].image.shape[0])
        network = instantiate(config.model, ndim=config.ndim, in_channels=channels, _convert_="all")
        if pretrained is None:
            return network, None
        whole = any(name.startswith("encoder.") for name in pretrained.weights)
        report = transfer(network if whole else network.encoder, pretrained.weights)
        return network, fitting(report, pretrained)

    def write(self, prediction: MaskedPrediction, sample: Sample, folder: Path, format: str) -> Path:
        """The masked and the completed image."""
        pairs = {"masked": prediction.masked(), "reconstruction": prediction.reconstruction}
        return write_images(prediction.name, pairs, make_folder(folder), prediction.space, format)[-1]

    def add_results(
        self, report: Report, task: MaskedPretrainTask, evaluation: Evaluation[MaskedPrediction], history: History
    ) -> None:
        """What was hidden of each image and what the network made of it."""
        add_masked_reconstructions(report, task, evaluation.predictions, evaluation.rows)

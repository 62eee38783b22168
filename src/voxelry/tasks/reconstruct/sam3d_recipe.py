"""The reconstruction in the two stages of SAM 3D Objects in the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from voxelry.bundle.model import Model, Readable
from voxelry.bundle.pretrained import Pretrained
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.settings import plain
from voxelry.core.space import Space
from voxelry.data.slices.dataset import SliceDataset
from voxelry.models.sam3d.memory import Step, memory_plan
from voxelry.models.transfer import TransferReport
from voxelry.tasks.reconstruct.flow_recipe import ReconstructFlowRecipe
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.recipe import ReconstructRecipe, check_grid
from voxelry.tasks.reconstruct.sam3d import ReconstructTwoStageTask
from voxelry.tasks.reconstruct.task import ReconstructTask

__all__ = ["ReconstructTwoStageRecipe"]

log = logging.getLogger("voxelry")

NETWORK = "sam3d_net"
STAGES = ("structure", "structure_flow", "latent_flow", "mesh_decoder", "encoder_width", "kind", "begin")
"""Settings of the two stages, which a model that is trained further brings along."""


class ReconstructTwoStageRecipe(ReconstructFlowRecipe):
    """Shapes from slices in two stages; may start from a model of `reconstruct`, whose network reads the prompt."""

    task = ReconstructTwoStageTask
    starts = ("shape_net", NETWORK)
    adjustable = (
        *(f"task.{name}" for name in ("guidance", "guidance_interval", "pose_decoder")),
        *ReconstructFlowRecipe.adjustable,
    )

    def network(
        self, config: DictConfig, dataset: SliceDataset, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """As the parent's; the two stages of a pretrained model are built as they are there, but for `checkpointing`.

        Raises:
            CheckpointError, ConfigError: as there, and for a grid of another size.
        """
        whole = config
        _check_reader(config, pretrained)
        if pretrained is not None and pretrained.kind == NETWORK and config.get("adapter") is None:
            check_grid(config, pretrained)
            brought = {name: pretrained.settings[name] for name in STAGES}
            whole = OmegaConf.create({**plain(config), "model": {**plain(config.model), **brought}})
        network: Any
        network, report = super().network(whole, dataset, pretrained)
        parts = {"structure_flow": network.structure_flow, "latent_flow": network.latent_flow}
        for name, part in {**parts, "mesh_decoder": network.surface.decoder}.items():
            part.checkpointing = bool((config.model.get(name) or {}).get("checkpointing", False))
        return network, report

    def prepare(self, task: ReconstructTask, config: DictConfig, dataset: SliceDataset) -> None:
        """As the parent's, and say what memory the training will take."""
        super().prepare(task, config, dataset)
        network: Any = task.network
        own = config.task
        half = str(config.trainer.precision).startswith(("bf16", "16"))
        step = Step(
            batch=int(config.data.batch_size), draws=int(own.draws), surface_items=int(own.surface_items), half=half
        )
        for line in memory_plan(network, step):
            log.info("%s", line)

    def predict(
        self, model: Model[ReconstructTask], image: Readable, space: Space | None, options: Mapping[str, Any]
    ) -> ReconstructPrediction:
        """As `ReconstructRecipe.predict`.

        Raises:
            DataError: nothing was found; or as there.
        """
        found = ReconstructRecipe.predict(self, model, image, space, options)
        if found.is_empty:
            raise DataError(
                f"{found.name}: the structure is empty, no cell is above the threshold; click inside the organ, or "
                "give its mask on the slice (--mask)"
            )
        return found


def _check_reader(config: DictConfig, pretrained: Pretrained | None) -> None:
    """Refuse to keep a reader whose last layers there aren't: those of a transformer are made for one grid.

    Raises:
        ConfigError: a model of `reconstruct` on another grid, and the reader isn't to learn.
    """
    if pretrained is None or pretrained.kind == NETWORK or "reader" in config.task.stages:
        return
    own, grid = pretrained.settings, config.model.grid
    if own.get("decoder") == "transformer" and own.get("grid") != grid:
        raise ConfigError(
            f"pretrained: {pretrained.source} answers on {own.get('grid')} cells, and its last layers can't on {grid}; "
            f"expected one that was trained with model.grid={grid}, or the reader among task.stages"
        )

"""The reconstruction task in the engine, where it answers with several hypotheses."""

from __future__ import annotations

from omegaconf import DictConfig
from torch import nn

from voxelry.bundle.pretrained import Pretrained
from voxelry.core.errors import ConfigError
from voxelry.data.slices.dataset import SliceDataset
from voxelry.models.transfer import TransferReport
from voxelry.tasks.reconstruct.flow import ReconstructFlowTask
from voxelry.tasks.reconstruct.options import FLOW_OPTIONS
from voxelry.tasks.reconstruct.recipe import ReconstructRecipe

__all__ = ["ReconstructFlowRecipe"]


class ReconstructFlowRecipe(ReconstructRecipe):
    """Shapes from slices by a flow; may start from a model of `reconstruct`, whose network is a part of its own."""

    task = ReconstructFlowTask
    starts = ("shape_net", "shape_flow")
    demo = None
    options = FLOW_OPTIONS
    adjustable = (
        *(f"task.{name}" for name in ("samples", "steps", "sampler", "shift", "noise_seed")),
        *ReconstructRecipe.adjustable,
    )

    def network(
        self, config: DictConfig, dataset: SliceDataset, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """As `ReconstructRecipe.network`; an adapter needs a flow, which a model of `reconstruct` doesn't have.

        Raises:
            CheckpointError: pretrained weights of another kind of network.
            ConfigError: an adapter without a flow to adapt.
        """
        if config.get("adapter") is not None and pretrained is not None and pretrained.kind == "shape_net":
            raise ConfigError(
                f"adapter: {pretrained.source} answers once and has no flow to adapt; expected a bundle of "
                "reconstruct_flow, or task=reconstruct"
            )
        return super().network(config, dataset, pretrained)

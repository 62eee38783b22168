"""The reconstruction task in the engine, where it answers with several hypotheses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig
from torch import nn

from voxelry.core.errors import ConfigError
from voxelry.tasks.reconstruct.recipe import ReconstructKind

if TYPE_CHECKING:
    from voxelry.bundle.pretrained import Pretrained
    from voxelry.data.slices.dataset import SliceDataset
    from voxelry.models.transfer import TransferReport

__all__ = ["ReconstructFlowKind"]


class ReconstructFlowKind(ReconstructKind):
    """Shapes from slices by a flow; may start from a model of `reconstruct`, whose network is a part of its own."""

    name = "reconstruct_flow"
    target = "voxelry.tasks.reconstruct.ReconstructFlowTask"
    starts = ("shape_net", "shape_flow")
    options = ("samples", "steps", "sampler")
    adjustable = tuple(f"task.{name}" for name in (*options, "shift", "noise_seed")) + ReconstructKind.adjustable

    def network(
        self, config: DictConfig, dataset: SliceDataset, pretrained: Pretrained | None
    ) -> tuple[nn.Module, TransferReport | None]:
        """As `ReconstructKind.network`; an adapter needs a flow, which a model of `reconstruct` doesn't have.

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

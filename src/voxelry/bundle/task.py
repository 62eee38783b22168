"""What a bundle knows of a task; `tasks.base` says what else one is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from voxelry.core.settings import Configured
from voxelry.metrics.choice import MetricChoice

__all__ = ["StoredTask"]


class StoredTask(Configured, nn.Module, ABC):
    """A network together with what it is trained for, as its weights and settings are written and read.

    Its settings are those of `core.settings.Configured`, without the network.

    Attributes:
        name: what bundles, checkpoints and the command line call the task.
        network: the module that images go through; it has `ndim`, their rank, and `settings()`.
        chosen: which metrics are computed and told, see `choose`.
    """

    name: str
    network: nn.Module
    chosen: MetricChoice = MetricChoice()

    @abstractmethod
    def choose(self, metrics: MetricChoice) -> None:
        """Compute and tell those metrics from now on.

        Raises:
            SettingError: a metric, class or threshold that the task doesn't have; names the nearest.
        """

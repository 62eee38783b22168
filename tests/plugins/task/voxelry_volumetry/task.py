"""What is learned, answered and measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.data.sample import Batch
from voxelry.tasks.base import Row, Task

UNITS = {"ml": 1000.0, "mm3": 1.0}


@dataclass(frozen=True)
class Volume:
    """The answer for one image."""

    name: str
    value: float
    unit: str


class VolumetryTask(Task):
    """The network's map says how much of each voxel belongs to the organ."""

    name = "volumetry"
    monitor = "error_ml"  # the best checkpoint has the lowest

    def __init__(self, network: nn.Module, *, label: int = 1):
        super().__init__()
        self.network, self.label = network, label

    def settings(self) -> dict[str, Any]:
        return {"label": self.label}

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.binary_cross_entropy_with_logits(self.network(batch.image)[:, 0], self._organ(batch))}

    def predict(self, batch: Batch, *, unit: str = "ml") -> list[Volume]:
        if unit not in UNITS:
            raise SettingError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")
        volumes = self._mm3(self.network(batch.image)[:, 0].sigmoid(), batch)
        return [Volume(name, mm3 / UNITS[unit], unit) for name, mm3 in zip(batch.names, volumes, strict=True)]

    def metrics(self, predictions: Sequence[Volume], batch: Batch, wanted: Any = None) -> list[Row]:
        truth = [mm3 / UNITS["ml"] for mm3 in self._mm3(self._organ(batch), batch)]
        return [
            {"name": found.name, "volume_ml": found.value, "error_ml": abs(found.value - true)}
            for found, true in zip(predictions, truth, strict=True)
        ]

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        return {"error_ml": fmean(float(row["error_ml"]) for row in rows) if rows else math.nan}

    def _organ(self, batch: Batch) -> Tensor:
        return (batch.labels == self.label).float()

    def _mm3(self, shares: Tensor, batch: Batch) -> list[float]:
        return (shares.flatten(1).sum(dim=1) * batch.spacing.prod(dim=1)).tolist()

"""Masked-autoencoder pretraining as a task: hide mask units, predict their voxels, measure how well."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.sample import Batch
from voxelry.metrics import images as image_metrics
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.models.mae import MaskedAutoencoder, PatchTargets, unpatchify
from voxelry.tasks.base import Row, Task
from voxelry.tasks.pretrain.targets import Range

__all__ = ["MaskedPrediction", "MaskedPretrainTask"]


@dataclass(frozen=True)
class MaskedPrediction:
    """A held-out image, most of it hidden, and what the network made up for it. All tensors on the CPU.

    Attributes:
        name: of the case.
        image: as it arrived, `(C, *spatial)`.
        hidden: the voxels the network did not see, `(*spatial)` bool.
        reconstruction: `(C, *spatial)`; the image where it was seen, the prediction where it was hidden. With
            normalised targets the network knows no brightness, so each patch is given its own mean and deviation.
        loss: mean over the hidden voxels, under a mask that never changes.
        space: the grid of all of them.
        source: the file the image came from.
    """

    name: str
    image: Tensor
    hidden: Tensor
    reconstruction: Tensor
    loss: float
    space: Space
    source: str = ""

    def masked(self, fill: float = 0.0) -> Tensor:
        """The image as the network saw it, `(C, *spatial)`, `fill` where it was hidden."""
        return torch.where(self.hidden, torch.full_like(self.image, fill), self.image)


class MaskedPretrainTask(Task[Batch, MaskedPrediction]):
    """Hiera learns to predict the hidden part of images from the rest (He et al. 2022, arXiv:2111.06377).

    Args:
        network: called as `network(x, mask)`.
        mask_ratio: share of the mask units that is hidden.
        normalise_targets: predict each patch with zero mean and unit variance; a loss of 1 is then what the mean of
            each patch would score.
        data_range: low and high of the images as they arrive, for PSNR and SSIM.
        seed: of the masks of held-out images.

    Raises:
        SettingError: a number that can't be, or a network that is no masked autoencoder.
    """

    name = "masked_pretrain"
    network: MaskedAutoencoder
    monitor = "val_loss"
    higher_is_better = False

    def __init__(
        self,
        network: MaskedAutoencoder,
        *,
        mask_ratio: float = 0.6,
        normalise_targets: bool = True,
        data_range: Range = (0.0, 1.0),
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(network, MaskedAutoencoder):
            raise SettingError(f"network: expected a MaskedAutoencoder (model=mae_hiera), got {type(network).__name__}")
        if not 0 < mask_ratio < 1:
            raise SettingError(f"mask_ratio: expected a share between 0 and 1, got {mask_ratio}")
        low, high = (float(value) for value in data_range)
        if not low < high:
            raise SettingError(f"data_range: expected a low and a higher number, got {data_range}")
        self.network = network
        self.mask_ratio, self.normalise_targets, self.seed = mask_ratio, normalise_targets, seed
        self.data_range = (low, high)

    def settings(self) -> dict[str, Any]:
        """Plain keywords, without the network, from which the constructor makes the same task again."""
        return {
            "mask_ratio": self.mask_ratio,
            "normalise_targets": self.normalise_targets,
            "data_range": list(self.data_range),
            "seed": self.seed,
        }

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the hidden voxels under masks drawn anew."""
        shape = batch.image.shape[2:]
        mask = self.network.draw_mask(len(batch), shape, self.mask_ratio).to(batch.image.device)
        errors, counted = self._errors(self.network(batch.image, mask), self._targets(batch.image), mask)
        return {"loss": errors.sum() / counted.sum().clamp(min=1)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[MaskedPrediction]:
        """Hide a part of each image, which depends on its name alone, and predict it."""
        shape = batch.image.shape[2:]
        generators = [torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode())) for name in batch.names]
        masks = [self.network.draw_mask(1, shape, self.mask_ratio, generator) for generator in generators]
        mask = torch.cat(masks).to(batch.image.device)
        targets = self._targets(batch.image)
        predicted = self.network(batch.image, mask)
        errors, counted = self._errors(predicted, targets, mask)
        losses = errors.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)
        whole = unpatchify(targets.restore(predicted.to(targets.values.dtype)), batch.image.shape[1], self._patch)
        made_up = whole[(slice(None), slice(None), *(slice(size) for size in shape))]
        hidden = self.network.hidden(mask, shape)
        restored = torch.where(hidden[:, None], made_up, batch.image)
        return [
            MaskedPrediction(
                name=name,
                image=batch.image[index].cpu(),
                hidden=hidden[index].cpu(),
                reconstruction=restored[index].cpu(),
                loss=float(losses[index]),
                space=batch.spaces[index],
                source=batch.sources[index] if batch.sources else "",
            )
            for index, name in enumerate(batch.names)
        ]

    def metrics(self, predictions: Sequence[MaskedPrediction], batch: Batch, wanted: Wanted = ALL) -> list[Row]:
        """Held-out loss; PSNR (dB), MSE and MAE of the hidden voxels, SSIM around them, and the share hidden."""
        span = self.data_range[1] - self.data_range[0]
        rows: list[Row] = []
        for prediction in predictions:
            pair = prediction.reconstruction[None].float(), prediction.image[None].float()
            hidden = prediction.hidden[None]
            rows.append(
                {
                    "name": prediction.name,
                    "val_loss": prediction.loss,
                    "ssim": float(image_metrics.ssim(*pair, data_range=span, mask=hidden)),
                    "psnr": float(image_metrics.psnr(*pair, data_range=span, mask=hidden)),
                    "mse": float(image_metrics.mse(*pair, mask=hidden)),
                    "mae": float(image_metrics.mae(*pair, mask=hidden)),
                    "hidden": float(prediction.hidden.float().mean()),
                }
            )
        return rows

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """Mean of every number over the cases where it is finite, NaN where it nowhere is."""
        means = {}
        for name in (name for name in (rows[0] if rows else {}) if name != "name"):
            finite = [float(row[name]) for row in rows if math.isfinite(float(row[name]))]
            means[name] = float(np.mean(finite)) if finite else math.nan
        return means or {self.monitor: math.nan}

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold."""
        return [self.monitor, "ssim", "psnr", "mse", "mae", "hidden"]

    @property
    def _patch(self) -> tuple[int, ...]:
        return self.network.patch_size

    def _targets(self, image: Tensor) -> PatchTargets:
        return self.network.targets(image.float(), normalise=self.normalise_targets)

    def _errors(self, predicted: Tensor, targets: PatchTargets, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of every voxel that counts, 0 elsewhere, and which do: hidden, and not padding."""
        hidden = self.network.hidden_patches(mask, predicted.shape[1:-1])
        counted = targets.weights * hidden[..., None]
        return (predicted.float() - targets.values).square() * counted, counted

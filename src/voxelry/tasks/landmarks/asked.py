"""The network of the landmark task as it is asked: for maps of an image, whole or in tiles, from several views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.ops.tiles import predict_tiles

__all__ = ["AskedNetwork"]


@dataclass(frozen=True, eq=False)
class AskedNetwork:
    """Images `(B, C, *spatial)` to the landmarks' logits `(B, N, *spatial)`.

    Attributes:
        network: answers a map per landmark, and then one per label class.
        landmarks, classes: how many there are.
        time_step: that the network is told; None: it isn't.
    """

    network: nn.Module
    landmarks: int
    classes: int = 0
    time_step: int | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """The landmarks' logits."""
        return self.maps(image)[:, : self.landmarks]

    def maps(self, image: Tensor) -> Tensor:
        """The landmarks' logits, then those of the label classes.

        Raises:
            SettingError: the network answers other maps.
        """
        told = () if self.time_step is None else (torch.full((len(image),), self.time_step, device=image.device),)
        maps: Tensor = self.network(image, *told)
        expected = (self.landmarks + self.classes, *image.shape[2:])
        if tuple(maps.shape[1:]) != expected:
            raise SettingError(
                f"network: expected {expected[0]} maps of {expected[1:]}, "
                f"got {maps.shape[1]} of {tuple(maps.shape[2:])}"
            )
        return maps

    def in_tiles(self, shape: Sequence[int], tile: Sequence[int] | None, overlap: float) -> Callable[[Tensor], Tensor]:
        """The same for images of that shape: in tiles if they are larger than one."""
        if tile is None or all(size <= part for size, part in zip(shape, tile, strict=True)):
            return self
        return partial(predict_tiles, network=self, tile_size=tile, overlap=overlap)

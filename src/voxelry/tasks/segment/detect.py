"""A trained detector for images on one grid: they are seen at the size that was learned, and answered on their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from voxelry.core.space import Space
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.ops.instances import Instances
from voxelry.tasks.segment.decode import decode
from voxelry.tasks.segment.rescale import at_learned_size, boxes_on

__all__ = ["Detector"]


@dataclass(frozen=True, eq=False)
class Detector:
    """Everything found in an image `(C, *spatial)`, or in a part of it, that the network sees at once.

    Attributes:
        network: the detector.
        space: the grid, for the size of its voxels.
        learned: the grid on which the network sees it, `space` itself where that is the same.
        input_range: what 0 and 1 are shown to the network as.
        decoding: keywords of `decode.decode`.
    """

    network: MaskRCNN
    space: Space
    learned: Space
    input_range: tuple[float, float]
    decoding: Mapping[str, Any]

    @torch.no_grad()
    def __call__(self, pixels: Any) -> Instances:
        """Instances, however unsure, in index coordinates of `pixels`, a tensor or an array."""
        image = torch.as_tensor(pixels)
        shape = tuple(image.shape[1:])
        part = self.space.crop((0,) * len(shape), shape)
        shown = part if self.learned is self.space else part.respace(self.learned.spacing)
        if shown is not part:
            image = at_learned_size(image, part, shown)
        low, high = self.input_range
        device = next(self.network.parameters()).device
        (found,) = self.network.detect(image[None].to(device, torch.float32) * (high - low) + low)
        if shown is not part:
            found = found.replace(boxes=boxes_on(found.boxes, shown, part))
        return decode(found, shape, **self.decoding)

"""From images as they are to one batch that a detector takes, and boxes back again.

torchvision's `GeneralizedRCNNTransform` in any rank, each of its steps optional: volumes come normalised and on a
grid of their own, and are padded only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import DataError, SettingError
from voxelry.core.rank import per_axis
from voxelry.models.mask_rcnn.settings import TransformSettings
from voxelry.nn import nd

__all__ = ["Prepared", "Transform", "resize_boxes"]


@dataclass
class Prepared:
    """A batch for the network.

    Attributes:
        image: `(B, C, *S)`, padded with zeros at the far ends.
        shapes: size of each image within the batch, without the padding.
        originals: size of each image as it was given.
        boxes: `(K, 2 * ndim)` float32 per image, in voxels of the batch.
        masks: per image ids `(*shape)` int64, or one mask of zeros and ones per box, `(K, *shape)`.
    """

    image: Tensor
    shapes: list[tuple[int, ...]]
    originals: list[tuple[int, ...]]
    boxes: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)


class Transform(nn.Module):
    """Normalise, resize, pad.

    Args:
        settings: which steps, and to what.
        ndim: number of spatial axes.
        low: coordinate of the outer edge of the first voxel, about which boxes are scaled: -0.5 where voxels are
            centred on integers, 0 as torchvision has it.

    Raises:
        SettingError: a size that isn't positive, means without their deviations.
    """

    def __init__(self, settings: TransformSettings, *, ndim: int, low: float = -0.5):
        super().__init__()
        self.ndim = ndim
        self.min_size = () if settings.min_size is None else _listed(settings.min_size)
        self.max_size, self.low = settings.max_size, low
        self.fixed_size = (
            None if settings.fixed_size is None else per_axis(settings.fixed_size, ndim, "transform.fixed_size")
        )
        self.mean, self.std = tuple(settings.image_mean or ()), tuple(settings.image_std or ())
        self.size_divisible = per_axis(settings.size_divisible, ndim, "transform.size_divisible")
        sized = bool(self.min_size or self.max_size or self.fixed_size)
        self.skip_resize = not sized if settings.skip_resize is None else settings.skip_resize
        self.skip_normalize = not self.mean if settings.skip_normalize is None else settings.skip_normalize
        for name in ("min_size", "max_size", "fixed_size", "size_divisible"):
            given = getattr(settings, name)
            if given is not None and not (_listed(given) and all(map(_is_size, _listed(given)))):
                raise SettingError(f"transform.{name}: expected positive whole numbers, got {given!r}")
        if not (self.skip_resize or sized):
            raise SettingError("transform.min_size: expected a size to resize to, or skip_resize, got none")
        if len(self.mean) != len(self.std) or not all(self.std):
            raise SettingError(
                "transform.image_mean, image_std: expected as many of both, one per channel, and no deviation of 0, "
                f"got {list(self.mean)} and {list(self.std)}"
            )

    def forward(
        self,
        images: Sequence[Tensor],
        boxes: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        *,
        draw: bool = False,
    ) -> Prepared:
        """Bring images `(C, *shape)` of any sizes to one batch, boxes and masks with them.

        Args:
            boxes: `(K, 2 * ndim)` per image, in its voxels.
            masks: ids `(*shape)` or one mask per box `(K, *shape)` per image; resampled to the nearest voxel.
            draw: draw `min_size` from torch's generator; without, its last value is taken.

        Raises:
            DataError: an image isn't floating point or has another rank or number of channels.
        """
        resized, found_masks = [], []
        for place, image in enumerate(images):
            if image.ndim != self.ndim + 1 or not image.is_floating_point():
                raise DataError(
                    f"image {place + 1}: expected floating point with a channel and {self.ndim} spatial axes, "
                    f"got {image.dtype} of shape {tuple(image.shape)}"
                )
            mask = None if masks is None else masks[place]
            image, mask = self.resize(self.normalize(image), mask, draw=draw)
            resized.append(image)
            found_masks += [] if mask is None else [mask]
        shapes = [tuple(image.shape[1:]) for image in resized]
        originals = [tuple(image.shape[1:]) for image in images]
        found_boxes = [
            resize_boxes(box.float(), old, new, low=self.low)
            for box, old, new in zip(boxes or (), originals, shapes, strict=bool(boxes))
        ]
        return Prepared(self.pad(resized), shapes, originals, found_boxes, found_masks)

    def normalize(self, image: Tensor) -> Tensor:
        """Subtract the mean of each channel and divide by its deviation, `(C, *S)`.

        Raises:
            DataError: the image has another number of channels than there are means.
        """
        if self.skip_normalize:
            return image
        if image.shape[0] != len(self.mean):
            raise DataError(f"image: expected {len(self.mean)} channels (one per mean), got {image.shape[0]}")
        tail = (1,) * (image.ndim - 1)
        mean = torch.tensor(self.mean, dtype=image.dtype, device=image.device).reshape(-1, *tail)
        std = torch.tensor(self.std, dtype=image.dtype, device=image.device).reshape(-1, *tail)
        return (image - mean) / std

    def resize(self, image: Tensor, mask: Tensor | None = None, *, draw: bool = False) -> tuple[Tensor, Tensor | None]:
        """Resize one image and its mask; with `draw` one number is taken from torch's generator."""
        if self.skip_resize:
            return image, mask
        resize = partial(F.interpolate, size=self.resized_shape(image.shape[1:], draw=draw))
        resized = resize(image[None], mode=nd.interpolation_mode(self.ndim), align_corners=False)
        if mask is not None:
            whole = mask.ndim == self.ndim
            channels = (mask[None] if whole else mask).to(torch.float32)  # exact to 16 million ids
            if len(channels):
                channels = resize(channels[:, None], mode="nearest")[:, 0]
            else:
                channels = channels.new_zeros(0, *resized.shape[2:])
            mask = (channels[0] if whole else channels).to(mask.dtype)
        return resized[0], mask

    def resized_shape(self, shape: Sequence[int], *, draw: bool = False) -> tuple[int, ...]:
        """The shape in which the network sees an image of that shape, without padding; at least 1 along each axis.

        With `draw` a number is taken from torch's generator, as in `forward`.
        """
        if self.skip_resize:
            return tuple(shape)
        factor = self._factor(shape, draw=draw)
        return self.fixed_size or tuple(max(1, math.floor(float(size) * factor)) for size in shape)

    def _factor(self, shape: Sequence[int], *, draw: bool) -> float:
        chosen = None
        if self.min_size:
            chosen = self.min_size[int(torch.empty(1).uniform_(0.0, float(len(self.min_size))).item()) if draw else -1]
        # in float32, as the sizes depend on how the quotient is rounded
        sizes = torch.tensor(shape)
        short, long = sizes.min().to(torch.float32), sizes.max().to(torch.float32)
        wanted = torch.tensor(1.0) if chosen is None else float(chosen) / short
        limit = torch.tensor(math.inf) if self.max_size is None else float(self.max_size) / long
        return float(torch.min(wanted, limit).item())

    def pad(self, images: Sequence[Tensor]) -> Tensor:
        """Stack images of unlike sizes, zeros at the far end of each axis, `-> (B, C, *S)`."""
        sizes = torch.tensor([image.shape[1:] for image in images]).amax(dim=0).tolist()
        shape = [-(-size // step) * step for size, step in zip(sizes, self.size_divisible, strict=True)]
        if all(list(image.shape[1:]) == shape for image in images):
            return torch.stack(list(images))
        batch = images[0].new_zeros(len(images), images[0].shape[0], *shape)
        for row, image in zip(batch, images, strict=True):
            row[(slice(None), *(slice(0, size) for size in image.shape[1:]))].copy_(image)
        return batch


def resize_boxes(boxes: Tensor, old: Sequence[int], new: Sequence[int], *, low: float) -> Tensor:
    """Boxes `(K, 2 * ndim)` of an image of shape `old` in the voxels of the same image resized to `new`.

    `low` is the coordinate of the outer edge of the first voxel, the one point that stays.
    """
    if tuple(old) == tuple(new):
        return boxes
    ratio = torch.tensor(new, dtype=torch.float32) / torch.tensor(old, dtype=torch.float32)
    ratio = ratio.to(boxes.device).repeat(2)
    return (boxes - low) * ratio + low if low else boxes * ratio


def _listed(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else (sizes,)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0

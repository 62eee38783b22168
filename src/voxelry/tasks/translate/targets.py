"""What the network is given beside the image on its way: the conditions, which of them there are, and where it is.

Images arrive in [0, 1] and are shown in [-1, 1]; a contrast that is absent is shown as 0, the middle of the range,
and its presence channel says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.data.context import positions, whole_view
from voxelry.data.sample import Batch
from voxelry.diffusion.inputs import Rescale
from voxelry.nn import nd
from voxelry.ops.tiles import Job, cut

__all__ = ["RANGE", "Given", "given", "input_channels", "reduced", "withheld"]

RANGE = Rescale((0.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class Given:
    """What is known of a batch, in the network's range.

    Attributes:
        image: conditions `(B, C, *spatial)`, 0 where one is absent.
        present: `(B, C)` bool.
        start: the best guess of the target without a network, `(B, C_t, *spatial)`.
        context: where the images lie in theirs, `(B, ndim + C, *spatial)`; None where the network isn't told, or
            where these are whole images, of which every window's is made when it is asked for.
        tells_place: whether the network is told.
    """

    image: Tensor
    present: Tensor
    start: Tensor
    context: Tensor | None = None
    tells_place: bool = False
    _views: dict[tuple[int, torch.Size], Tensor] = field(default_factory=dict, repr=False)

    def stacked(self, x_t: Tensor, jobs: Sequence[Job]) -> Tensor:
        """The network's input for some windows, `(len(jobs), channels, *window)`.

        Channels: conditions, presence (of more than one condition), context, and `x_t` `(B, C_t, *spatial)`.
        """
        return torch.stack([self._window(x_t, sample, window) for sample, window in jobs])

    def _window(self, x_t: Tensor, sample: int, window: tuple[slice, ...]) -> Tensor:
        parts = [cut(self.image[sample], window)]
        size = parts[0].shape[1:]
        present = self.present[sample].to(self.image.dtype)
        if len(present) > 1:
            parts.append(present.reshape(-1, *[1] * len(size)).expand(-1, *size))
        if self.context is not None:
            parts.append(cut(self.context[sample], window))
        elif self.tells_place:
            image = self.image[sample]
            parts.append(positions(image.shape[1:], [part.start for part in window], size).to(image))
            if (sample, size) not in self._views:  # the same for all windows of one size
                self._views[sample, size] = whole_view(image, size)
            parts.append(self._views[sample, size])
        return torch.cat([*parts, cut(x_t[sample], window)])


def input_channels(conditions: int, targets: int, ndim: int, *, tells_place: bool) -> int:
    """Channels of the network's input, see `Given.stacked`."""
    presence = conditions if conditions > 1 else 0
    return conditions + presence + (ndim + conditions if tells_place else 0) + targets


def given(batch: Batch, targets: int, *, tells_place: bool, present: Tensor | None = None) -> Given:
    """What a batch tells.

    The guess of the target is its own channel of the image where there are as many targets as conditions, and else,
    or where that channel is absent, the mean of the conditions that there are.

    Args:
        batch: images in [0, 1].
        targets: channels of the target.
        tells_place: add the context.
        present: `(B, C)` bool, instead of the batch's own.

    Raises:
        DataError: names a case without any condition.
    """
    if present is None:
        present = batch.present
    if present is None:
        present = torch.ones(batch.image.shape[:2], dtype=torch.bool, device=batch.image.device)
    counts = present.sum(dim=1)
    if not bool((counts > 0).all()):
        name = batch.names[int((counts == 0).nonzero()[0])]
        raise DataError(f"{name}: none of the contrasts is there; expected at least one")
    ndim = batch.image.ndim - 2
    shown = present.reshape(*present.shape, *[1] * ndim)
    image = torch.where(shown, RANGE.forward(batch.image), 0.0)
    mean = image.sum(dim=1, keepdim=True) / counts.reshape(-1, 1, *[1] * ndim)
    start = torch.where(shown, image, mean) if image.shape[1] == targets else mean.expand(-1, targets, *mean.shape[2:])
    place = batch.context if tells_place else None
    if place is not None:
        seen = RANGE.forward(place[:, ndim:])
        place = torch.cat([place[:, :ndim], torch.where(shown, seen, 0.0)], dim=1)
    return Given(image, present, start, place, tells_place)


def withheld(present: Tensor, chance: float) -> Tensor:
    """Contrasts dropped at random, each with that chance, but never the last of a case; `(B, C) -> (B, C)` bool."""
    priority = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    spared = torch.nn.functional.one_hot(priority.argmax(dim=1), present.shape[1]).bool()
    kept = torch.rand(present.shape, device=present.device) >= chance
    return present & (kept | spared)


def reduced(image: Tensor, factor: int) -> Tensor:
    """Images averaged over blocks of `factor` voxels, `(B, C, *S) -> (B, C, *(S // factor))`; short axes stay."""
    window = [factor if size >= 2 * factor else 1 for size in image.shape[2:]]
    return nd.average_pool(image, window)

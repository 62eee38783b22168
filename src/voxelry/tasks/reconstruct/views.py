"""The same prompt in several frames: around the first answer, and in the mirror; answers are compared in the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.space import Space
from voxelry.data.slices.augment import move_slice, move_space
from voxelry.data.slices.case import SliceBatch, ViewSettings, build_case, collate_slices
from voxelry.ops.sdf import canonical_space, resample_sdf

__all__ = ["Views", "frame_space"]

Points = Sequence[NDArray[np.float64]]


def frame_space(batch: SliceBatch, place: int, grid: int) -> Space:
    """The canonical grid of one sample of a batch."""
    return canonical_space(batch.centre[place].double().cpu().numpy(), float(batch.edge[place]), grid)


class Views:
    """Further looks at prompts.

    Args:
        answer: distances of a batch in mm, `(B, K, n, n, n)`: one answer or several at once.
        image_size: pixels of a slice's view.
        view: its side in edges.
    """

    def __init__(self, answer: Callable[[SliceBatch], Tensor], image_size: int, view: float):
        self.answer, self.image_size, self.view = answer, image_size, view

    def answers(
        self, batch: SliceBatch, first: Tensor, frames: Sequence[Space], *, mirror: bool, recentre: bool
    ) -> Tensor:
        """The answers in several frames, `(V, B, K, n, n, n)` mm, each read off on the first one, which is among them.

        Args:
            batch: the prompts.
            first: their answer, `(B, K, n, n, n)` mm on `frames`.
            frames: of the samples.
            mirror: with left and right exchanged, too.
            recentre: around the centroid of the first answer, or of the mean of several, too.
        """
        known = [sdf.float().cpu().numpy() for sdf in first]
        centres = [np.asarray(frame.to_world((np.asarray(frame.shape) - 1) / 2)) for frame in frames]
        looks: list[tuple[Points, bool]] = [(centres, True)] if mirror else []
        if recentre:
            around: Points = [
                _middle(sdf.mean(axis=0), frame, centre)
                for sdf, frame, centre in zip(known, frames, centres, strict=True)
            ]
            looks += [(around, mirrored) for mirrored in ((False, True) if mirror else (False,))]
        found = [np.stack(known)]
        for middles, mirrored in looks:
            motions = [_reflection(middle) if mirrored else np.eye(4) for middle in middles]
            again = self._moved(batch, motions, middles).to(first.device)
            read = []
            for place, answer in enumerate(self.answer(again)):
                back = np.asarray(np.linalg.inv(motions[place]), dtype=np.float64)
                own = move_space(frame_space(again, place, answer.shape[-1]), back)
                answers = answer.float().cpu().numpy()
                read.append(np.stack([resample_sdf(one, own, frames[place]) for one in answers]))
            found.append(np.stack(read))
        return torch.from_numpy(np.stack(found)).to(first)

    def _moved(self, batch: SliceBatch, motions: Points, centres: Points) -> SliceBatch:
        cases = []
        for place, (motion, centre) in enumerate(zip(motions, centres, strict=True)):
            slices = [move_slice(one, motion) for one in batch.slices[place]]
            cases.append(
                build_case(
                    slices,
                    edge=float(batch.edge[place]),
                    views=ViewSettings(image_size=self.image_size, view=self.view),
                    give_mask=batch.has_mask[place, : len(slices)].tolist(),
                    give_field=bool(batch.field_of_view[place].isfinite().all()),
                    centre=motion[:3, :3] @ centre + motion[:3, 3],
                ).padded(batch.image.shape[1])
            )
        return collate_slices(cases)


def _middle(sdf: NDArray[np.float32], frame: Space, otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    """The centroid of a shape in the world; another place if it is empty."""
    inside = np.argwhere(sdf < 0)
    return np.asarray(frame.to_world(inside.mean(axis=0)), dtype=np.float64) if len(inside) else otherwise


def _reflection(centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Left and right of a place exchanged, `(4, 4)`."""
    motion = np.eye(4)
    motion[0, 0], motion[0, 3] = -1.0, 2 * centre[0]
    return motion

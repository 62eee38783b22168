"""The shape expected before anything is seen: what a network adds its answer to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.nn.nd import interpolation_mode
from voxelry.ops.prompt import frame_points

__all__ = ["MeanShape", "truncate"]

BALL = 0.2  # radius, in edges, of the shape that stands in until a mean shape is set


class MeanShape(nn.Module):
    """A mean signed distance for each class, moved and scaled; not trained, but stored with the weights.

    Args:
        classes: number of organs.
        grid: cells per axis of the stored shapes.
    """

    distances: Tensor

    def __init__(self, classes: int, grid: int):
        super().__init__()
        ball = frame_points(grid, torch.zeros(())).norm(dim=-1) - BALL
        self.register_buffer("distances", ball.expand(classes, 1, grid, grid, grid).clone())

    @torch.no_grad()
    def set(self, distances: Tensor, label: int = 0) -> None:
        """Keep a mean shape.

        Args:
            distances: `(n, n, n)` in units of the edge, negative inside, in array order z, y, x; the shapes' centroid
                at the middle, at the size that `log_edge = 0` stands for. Any `n`; it is resampled.
            label: the class it belongs to.

        Raises:
            SettingError: it is no cube, isn't finite, or has no inside.
        """
        if distances.ndim != 3 or len(set(distances.shape)) != 1:
            raise SettingError(f"distances: expected a cube (n, n, n), got {tuple(distances.shape)}")
        if not bool(torch.isfinite(distances).all()) or not bool((distances < 0).any()):
            raise SettingError("distances: expected finite signed distances, negative inside the shape")
        size = tuple(self.distances.shape[2:])
        given = distances[None, None].to(self.distances)
        same = size == tuple(given.shape[2:])
        fitted = (
            given if same else F.interpolate(given, size=size, mode=interpolation_mode(len(size)), align_corners=False)
        )
        self.distances[label] = fitted[0]

    def forward(self, points: Tensor, offset: Tensor, log_edge: Tensor, label: Tensor) -> Tensor:
        """The shape of each sample at points of the frame.

        Args:
            points: `(n, n, n, 3)`, frame coordinates.
            offset: `(B, 3)`, where the shape's centroid is.
            log_edge: `(B,)`, the logarithm of its size over the mean's.
            label: `(B,)`, classes.

        Returns:
            `(B, 1, n, n, n)`, signed distances in units of the frame's edge.
        """
        scale = log_edge.exp()[:, None, None, None, None]
        places = (points - offset[:, None, None, None]) / scale
        reach = 0.5 - 0.5 / self.distances.shape[-1]
        inside = places.clamp(-reach, reach)
        read = F.grid_sample(self.distances[label].to(places), 2 * inside, align_corners=False)
        beyond = (places - inside).square().sum(dim=-1).add(1e-12).sqrt()
        return scale * (read + beyond[:, None])


def truncate(distances: Tensor, limit: float) -> Tensor:
    """Distances held in `[-limit, limit]`; gradients pass as if they weren't.

    A cell that is told to be far away but lies near the surface can come back: a plain clamp has no gradient there.
    """
    return distances + (distances.clamp(-limit, limit) - distances).detach()

"""One call of the network for a volume of any size: tiles that are blended at every step.

Every tile of a step sees its part of the same image on its way, which began at one noise field, and what comes of
it is blended before the sampler goes on. Finished patches put side by side would each have their own noise and show
their borders. Any sampler works unchanged: to it this is a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from voxelry.ops.tiles import Job, blend_tiles
from voxelry.tasks.translate.targets import Given

__all__ = ["whole_or_tiled"]

Network = Callable[[Tensor, Tensor], Tensor]


def whole_or_tiled(
    network: Network,
    given: Given,
    *,
    tile_size: int | Sequence[int] | None = None,
    overlap: float = 0.5,
    residual: bool = False,
) -> Network:
    """The network as a function `(x_t, clock (B,))` of whole images, `(B, C_t, *spatial) -> ` the same shape.

    Args:
        network: called with stacked windows and their times.
        given: what it is shown beside `x_t`.
        tile_size: voxels per axis; None takes images whole. An axis that is shorter is taken whole.
        overlap: fraction of a tile shared with its neighbour, in [0, 1).
        residual: the network answers what is to be added to the condition's guess of the target.
    """

    def ask(x_t: Tensor, clock: Tensor) -> Tensor:
        def answer(jobs: Sequence[Job]) -> Tensor:
            return network(given.stacked(x_t, jobs), clock[[sample for sample, _ in jobs]])

        count, shape = len(x_t), x_t.shape[2:]
        if tile_size is None:
            whole = tuple(slice(0, size) for size in shape)
            found = answer([(sample, whole) for sample in range(count)])
        else:
            found = blend_tiles(answer, count, shape, tile_size=tile_size, overlap=overlap, device=x_t.device)
        return given.start + found if residual else found

    return ask

"""Which cells a surface may pass: occupancies of shapes, and the cells that the second stage works on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.nn import nd
from voxelry.nn.sparse import Cells

__all__ = ["KINDS", "MOST_CELLS", "Structure", "occupancy", "structure_of"]

log = logging.getLogger("voxelry")

RANK = 3  # of shapes
KINDS = ("filled", "shell")
MOST_CELLS = 42_000  # the original's limit


@dataclass(frozen=True)
class Structure:
    """The cells of a batch's surfaces.

    Attributes:
        grid: cells per axis, G.
        cells: coarse cells, sorted by item; every item has some.
        inside: `(B, G, G, G)` bool, cells that lie inside where nothing else is known; None of a shell.
        scale, shift: `(B, 3)`; a place `x` of the cells is `scale * x + shift` of the grid, which differs where there
            were too many cells.
    """

    grid: int
    cells: Cells
    inside: Tensor | None
    scale: Tensor
    shift: Tensor


def occupancy(distances: Tensor, grid: int, kind: str) -> Tensor:
    """Occupied cells of shapes, `(B, 1, n, n, n) -> (B, 1, G, G, G)` bool.

    Args:
        distances: signed, in edges of the frame; `n` a multiple of the grid.
        grid: cells per axis, G.
        kind: "filled": cells with their middle inside; "shell": cells that the surface may pass.

    Raises:
        SettingError: another `n`, or an unknown kind.
    """
    check_choice("kind", kind, KINDS)
    if distances.shape[-1] % grid:
        raise SettingError(f"grid: expected a multiple of the structure's {grid} cells, got {distances.shape[-1]}")
    middle = nd.average_pool(distances, (distances.shape[-1] // grid,) * RANK)
    return middle < 0 if kind == "filled" else middle.abs() < 0.5 * RANK**0.5 / grid


def structure_of(occupied: Tensor, kind: str, most: int = MOST_CELLS) -> Structure:
    """The cells at the border of what is occupied.

    Of a filled structure they are the cells on both sides of its surface, of a shell those that aren't surrounded by
    others. Beyond the grid nothing is occupied.

    Args:
        occupied: `(B, 1, G, G, G)` bool.
        kind: see `occupancy`.
        most: of an item. Of a filled structure with more the outer side is left out first; what is still too much is
            halved as the original does it, and a warning says so.

    Raises:
        DataError: an item without any occupied cell.
        SettingError: an unknown kind.
    """
    check_choice("kind", kind, KINDS)
    empty = (~occupied).flatten(1).all(dim=1)
    if empty.any():
        raise DataError(
            f"structure: no cell of item {int(empty.nonzero()[0])} is above the threshold, so there is no surface"
        )
    inner, outer = occupied & _near(~occupied, beyond=1.0), ~occupied & _near(occupied, beyond=0.0)
    coords, scales, shifts = [], [], []
    for item, (own, around) in enumerate(zip(inner[:, 0], outer[:, 0], strict=True)):
        both = own | around if kind == "filled" else own
        places = torch.nonzero(both if int(both.sum()) <= most else own)
        scale, shift = torch.ones(RANK), torch.zeros(RANK)
        if int(both.sum()) > most:
            log.warning("structure: %d cells are more than %d; they are pruned", int(both.sum()), most)
        if len(places) > most:
            places, scale, shift = _halved(places, most)
        coords.append(F.pad(places, (1, 0), value=item))
        scales.append(scale)
        shifts.append(shift)
    cells = Cells(torch.cat(coords), len(occupied))
    inside = occupied[:, 0] if kind == "filled" else None
    there = (torch.stack(each).to(occupied.device) for each in (scales, shifts))
    return Structure(occupied.shape[-1], cells, inside, *there)


def _near(where: Tensor, *, beyond: float) -> Tensor:
    """Cells with one of `where` among them and their neighbours; `beyond` says whether the grid's outside is."""
    padded = F.pad(where.float(), (1,) * 2 * RANK, value=beyond)
    return nd.max_pool(padded, (3,) * RANK, stride=(1,) * RANK) > 0


def _halved(places: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places drawn together around the middle of their box until it is half as wide; at most so many of them.

    Returns:
        New places, and scale and shift `(3,)` that lead back.
    """
    low, high = places.amin(dim=0).double(), places.amax(dim=0).double()
    size = high - low + 1
    start, reach = low + size / 4, (size / 2 - 1).clamp(min=0)
    factor = reach / (high - low).clamp(min=1)
    moved = ((places - low) * factor + start).round().long()
    moved = torch.unique(torch.minimum(torch.maximum(moved, start.long()), (start + reach).long()), dim=0)
    if len(moved) > most:
        chosen = torch.randperm(len(moved), generator=torch.Generator().manual_seed(0))[:most]
        moved = moved[chosen.sort().values.to(moved.device)]
    back = 1 / factor.clamp(min=1e-6)
    return moved, back.float().cpu(), (low - start * back).float().cpu()

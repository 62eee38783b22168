"""Sparse linear maps along one axis of arrays whose innermost numbers lie beside each other in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelry.ops.kernels import jit

__all__ = ["TERMS", "mix"]

TERMS = 4
"""Cells that an answer's cell is the sum of, at most."""


@jit
def mix(source: Any, target: Any, weights: Any, columns: Any, count: Any, where: Any, place: Any) -> None:
    """Line by line, every cell of the target is a weighted sum of cells of the source.

    Indices are unsigned, as the check for negative ones would prevent vector instructions.

    Args:
        source, target: numbers, flat.
        weights, columns: `(cells, TERMS)`, of which cells of the source a cell of the target is the sum.
        count: `(cells,)`, how many of them count.
        where, place: offsets of the lines and of the cells within one, of source and target; and the numbers of a cell.
    """
    from_line, from_cell, _ = where
    to_line, to_cell, length = place
    many = np.uint64(length)
    for line in range(from_line.size):
        base = from_line[line]
        for cell in range(to_cell.size):
            t = np.uint64(to_line[line] + to_cell[cell])
            a, wa = np.uint64(base + from_cell[columns[cell, 0]]), weights[cell, 0]
            b, wb = np.uint64(base + from_cell[columns[cell, 1]]), weights[cell, 1]
            c, wc = np.uint64(base + from_cell[columns[cell, 2]]), weights[cell, 2]
            d, wd = np.uint64(base + from_cell[columns[cell, 3]]), weights[cell, 3]
            if count[cell] == 0:
                for n in range(many):
                    target[t + n] = 0
            elif count[cell] == 1:
                for n in range(many):
                    target[t + n] = wa * source[a + n]
            elif count[cell] == 2:
                for n in range(many):
                    target[t + n] = wa * source[a + n] + wb * source[b + n]
            elif count[cell] == 3:
                for n in range(many):
                    target[t + n] = wa * source[a + n] + wb * source[b + n] + wc * source[c + n]
            else:
                for n in range(many):
                    target[t + n] = wa * source[a + n] + wb * source[b + n] + wc * source[c + n] + wd * source[d + n]

"""What a training asks of its cases, for those that build its data and those that look at a folder before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from voxelry.data.layouts.case import Case

__all__ = ["GREY_AND_COLOUR", "Demands", "in_pieces", "lacking", "no_foreground"]

GREY_AND_COLOUR = frozenset({1, 3})
"""Numbers of channels that are learned from together: all are taken as grey."""

_WAYS = {
    "labels": "expected labels/{name}.* beside volumes/, labelsTr/{name}.* beside imagesTr/, or {name}-label.* beside "
    "the image",
    "instances": "expected a label volume instances/{name}.* beside volumes/, {name}_masks.* beside the image, or a "
    "dataset label in its HDF5 file",
}


@dataclass(frozen=True)
class Demands:
    """What a task asks of the cases that it is trained on.

    Attributes:
        needs: what is read beside the image, as in `data.dataset.VolumeDataset`.
        required: what every case must have: `landmarks`, `labels`, `instances`, or nothing.
        shown: label values of which every case must show one; empty: whatever it shows.
        contrast: whether images must be finite and not constant.
        fractions: of the parts that the cases are divided into, as in `data.splits.split_cases`.
    """

    needs: Sequence[str]
    required: str | None = None
    shown: Sequence[int] = ()
    contrast: bool = False
    fractions: Sequence[float] | None = None


def lacking(case: Case, required: str | None) -> str | None:
    """What is said of an image without the labels or instances that are required; None where it has them."""
    if required not in _WAYS or getattr(case, required) is not None:
        return None
    return f"no {required} for this image; {_WAYS[required].format(name=case.name)}"


def in_pieces(ids: NDArray[np.integer]) -> str | None:
    """What is said of instances with one id in several pieces, as masks of foreground have it; None for all others."""
    if len(np.unique(ids[ids > 0])) != 1:
        return None
    pieces = int(label(ids > 0)[1])
    if pieces < 2:
        return None
    return f"one object in {pieces} pieces: expected an id for each object, not one for all that is foreground"


def no_foreground(wanted: Iterable[object], values: Iterable[int]) -> str:
    """What is said of labels with none of those wanted, by the values that they have."""
    present = sorted(set(values) - {0})
    return f"no foreground of label {', '.join(map(str, wanted))} (it has {present or 'none at all'})"

"""What a task shows of itself in `voxelry demo`: phantoms and the overrides of short trainings, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["UNSEEN", "Demo", "DemoTraining", "Rank"]

UNSEEN = "unseen"
"""The folder of phantoms that are only predicted."""


@dataclass(frozen=True, kw_only=True)
class DemoTraining:
    """A training of a demo.

    Attributes:
        folder: of the run, in the demo's.
        heading: of its loss in the report.
        experiment: without its rank, such as `landmarks`.
        data: the folder of phantoms.
        pretrained: the folder of an earlier training that it starts from.
        minutes: wall-clock limit.
        overrides: of its configuration.
    """

    folder: str
    heading: str
    experiment: str
    data: str
    pretrained: str | None = None
    minutes: float
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What differs between images and volumes.

    Attributes:
        format: suffix of the phantoms.
        overrides: of all trainings.
    """

    format: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A demo of a task.

    Attributes:
        title, subtitle: of the report.
        kind: of the phantoms, `torso` or `nuclei`.
        size: voxels along the phantoms' axes.
        phantoms: their number, by folder; one of them is `UNSEEN`.
        trainings: one after the other; the last one's model is shown.
        ranks: those it can be run at.
        asks: options of a prediction from the labels of a phantom, where the task needs some, such as a click.
    """

    title: str
    subtitle: str
    kind: str
    size: int
    phantoms: Mapping[str, int]
    trainings: tuple[DemoTraining, ...]
    ranks: Mapping[int, Rank]
    asks: Callable[[Path], Mapping[str, Any]] | None = None

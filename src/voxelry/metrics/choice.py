"""Which metrics of a task are computed and told."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Self, TypeVar

from voxelry.core.errors import SettingError

__all__ = ["ALL", "MetricChoice", "Wanted"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Wanted:
    """Names of metrics, told apart by patterns such as `ap_*`.

    Attributes:
        patterns: what a wanted name is or fits, one of them.
        without: what it must not fit.
    """

    patterns: Sequence[str] = ("*",)
    without: Sequence[str] = ()

    def __call__(self, *names: str) -> bool:
        """Whether one of the names at least is wanted."""
        return any(_fits(name, self.patterns) and not _fits(name, self.without) for name in names)

    def of(self, metrics: Mapping[str, Value]) -> dict[str, Value]:
        """Those of the metrics that are wanted, in their order."""
        return {name: value for name, value in metrics.items() if self(name)}


ALL = Wanted()
"""Every name."""


@dataclass(frozen=True)
class MetricChoice:
    """What a user wants to know of how good a model is.

    Args:
        at_validation: metrics computed while a model learns, names or patterns such as `ap_*`. None: all but those that
            take long.
        at_end: metrics told of the held-out cases at the end of a training and by `evaluate`. None: all.
        thresholds: further ones, of an IoU for instances, in mm for landmarks.
        classes: names of the classes, landmarks or organs that count. None: all.

    Raises:
        SettingError: a value that can't be; names the setting.
    """

    at_validation: Sequence[str] | None = None
    at_end: Sequence[str] | None = None
    thresholds: Sequence[float] = ()
    classes: Sequence[str] | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The choice of a configuration.

        Raises:
            SettingError: a setting that there isn't, or a value that can't be.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise SettingError(f"metrics.{name}: no such setting; {_nearest(str(name), known)}")
        return cls(**settings)

    def __post_init__(self) -> None:
        for name in ("at_validation", "at_end", "classes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, str) or not isinstance(value, Sequence) or not value):
                raise SettingError(f"metrics.{name}: expected names such as [{value or 'NAME'}], got {value!r}")
        limits = self.thresholds
        if isinstance(limits, str) or not isinstance(limits, Sequence) or not all(map(_positive, limits)):
            raise SettingError(f"metrics.thresholds: expected a list of positive numbers, got {limits!r}")

    def check(self, metrics: Iterable[str], classes: Sequence[str], highest: float | None) -> None:
        """Refuse what a task can't tell.

        Args:
            metrics: the names of the task's metrics.
            classes: the names of its classes; empty where it has none.
            highest: the largest threshold that it knows; None where it knows none.

        Raises:
            SettingError: names the setting and the nearest name that is known.
        """
        for name, asked, known in (
            ("at_validation", self.at_validation, list(metrics)),
            ("at_end", self.at_end, list(metrics)),
            ("classes", self.classes, list(classes)),
        ):
            for word in asked or ():
                if not any(one == word or (name != "classes" and _fits(one, [str(word)])) for one in known):
                    raise SettingError(f"metrics.{name}: no {word!r} here; {_advice(name, asked or (), known, word)}")
        if highest is None and self.thresholds:
            raise SettingError("metrics.thresholds: nothing here is found or missed by a threshold; leave it out")
        above = [limit for limit in self.thresholds if highest is not None and limit > highest]
        if above:
            raise SettingError(f"metrics.thresholds: expected numbers up to {highest:g}, got {above[0]}")

    def counts(self, name: str) -> bool:
        """Whether a class counts."""
        return self.classes is None or name in self.classes

    def while_learning(self, monitor: str, slow: Sequence[str]) -> Wanted:
        """Those of a validation, always with the one that the best checkpoint is chosen by.

        Args:
            slow: patterns of the metrics that take long.
        """
        if self.at_validation is None:
            return Wanted(without=tuple(slow))
        return Wanted((*self.at_validation, monitor))

    def when_done(self) -> Wanted:
        """Those of held-out cases."""
        return Wanted() if self.at_end is None else Wanted((*self.at_end, *(f"unseen.{name}" for name in self.at_end)))


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _advice(name: str, asked: Sequence[object], known: Sequence[str], word: object) -> str:
    """What to give instead; of classes, numbers stand for the names in their order."""
    numbers = [int(str(one)) for one in asked if str(one).isdigit()]
    if name == "classes" and len(numbers) == len(asked) and all(1 <= number <= len(known) for number in numbers):
        return f"classes go by their names: metrics.classes=[{','.join(known[number - 1] for number in numbers)}]"
    return _nearest(str(word), known)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"the nearest is {near[0]!r}"
    return f"expected some of {', '.join(known)}" if known else "this task has none to choose from"

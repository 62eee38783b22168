"""A plan for images that are larger than the memory: they are learned from in crops, which are read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from voxelry.engine.plan.situation import Situation, listed, seen_at_once
from voxelry.engine.plan_file import Decision

__all__ = ["in_crops"]

_PREPROCESS = "data.preprocess."
_ALIKE = ("normalise", "window")  # what crops have under another name
_SAME = ("data.split.", "data.batch_size", "data.num_workers")


def in_crops(decisions: Sequence[Decision], situation: Situation) -> Iterator[Decision]:
    """The decisions for volumes, as they are for crops of the size of a training's windows."""
    size = seen_at_once(situation)
    names = ", ".join(situation.oversized)
    yield Decision("data", "crops", f"{names}: larger than the memory; the crops of all images are listed first")
    yield Decision("data.crop_size", list(size), f"as windows of {listed(size)} would be")
    for one in decisions:
        name = one.setting.removeprefix(_PREPROCESS)
        if name in _ALIKE:
            yield Decision(f"data.{name}", one.value, one.why)
        elif not one.setting.startswith("data.") or one.setting.startswith(_SAME):
            yield one

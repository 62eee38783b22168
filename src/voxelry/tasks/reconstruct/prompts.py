"""Prompts of a run: slices with clicks, drawn anew for training and always the same for measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.data.slices.augment import SliceAugment
from voxelry.data.slices.case import SliceCase
from voxelry.data.slices.dataset import SliceDataset
from voxelry.data.slices.sources import SliceSource

__all__ = ["evaluation_items", "prompts", "still_slices"]


def still_slices(source: SliceSource, like: SliceDataset, *, slices: int, mask: float, **items: Any) -> SliceDataset:
    """Prompts of held-out cases, in the frame of the training, with the truth to measure on.

    Args:
        source: the cases.
        like: the training's.
        slices: slices of a prompt.
        mask: chance that a prompt has its slices' masks.
        items: of `SliceDataset`: `repeats`, `every_organ`, `clicks`, `seed`.
    """
    return SliceDataset(
        source,
        organs=like.organs,
        slices=slices,
        axes=like.choice.axes,
        oblique=float(like.choice.oblique == 1),
        min_pixels=like.choice.min_pixels,
        mask=mask,
        edge=like.edges,
        truth=True,
        **{"seed": 1000, **vars(like.views), **items},
    )


def prompts(sources: Mapping[str, SliceSource], settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The parts of a run and its training cases unaltered, as `Splits` has them.

    Args:
        sources: of the cases, by part.
        settings: of `SliceDataset`, and of `SliceAugment` as `augment`.
        seed: of slices, clicks and movements.
    """
    settings = dict(settings)
    augment = settings.pop("augment", None)
    measured = {"every_organ": True, **evaluation_items(settings.pop("evaluation", None) or {})}
    train = SliceDataset(
        sources["train"],
        augment=None if augment is None else SliceAugment(**augment),
        seed=seed,
        **settings,
    )
    seed = measured["seed"]
    held_out = {
        "validation": still_slices(sources["validation"], train, slices=1, mask=0.0, every_organ=True, seed=seed),
        "test": still_slices(sources["test"], train, slices=1, mask=0.0, **measured),
    }
    return {"train": train, **held_out, "unaltered": _Unaltered(sources["train"], train)}


def evaluation_items(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation (`slices` of each organ, `clicks` on each, `seed`) as `SliceDataset` calls them.

    Raises:
        SettingError: another setting, or a number that isn't whole and positive.
    """
    known = {"slices": 3, "clicks": 2, "seed": 1000}
    for name, value in settings.items():
        check_choice("data.slices.evaluation", name, known)
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "seed" else 1):
            raise SettingError(f"data.slices.evaluation.{name}: expected a positive whole number, got {value!r}")
    chosen = {**known, **settings}
    return {"repeats": chosen["slices"], "clicks": chosen["clicks"], "seed": chosen["seed"]}


class _Unaltered:
    """A training case with its shape and nothing moved, by its number."""

    def __init__(self, source: SliceSource, train: SliceDataset):
        self.dataset: Any = still_slices(source, train, slices=1, mask=0.0, repeats=train.repeats)

    def __call__(self, index: int) -> SliceCase:
        case: SliceCase = self.dataset[index]
        return case

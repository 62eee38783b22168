"""Slices and clicks as a torch dataset: from 1 to N slices of an organ, and its true shape in their frame.

    volumes = VolumeDataset.from_folder("datasets/organs", cache="memory")
    dataset = SliceDataset(VolumeSlices(volumes), organs=[(1, 2)], slices=(1, 3), augment=SliceAugment())
    case = dataset[0]                      # case.prompt(), case.sdf, ...

Its random numbers depend on seed, epoch and index alone, as those of `VolumeDataset`. `dataset.collate` makes a
batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.core.settings import Configured, own_fields, settle
from voxelry.data.dataset import one_line_errors
from voxelry.data.slices.augment import SliceAugment, SliceMovement
from voxelry.data.slices.case import SliceCase, ViewSettings, build_case, collate_slices, frame_of
from voxelry.data.slices.choice import Choice, Cut, Draw
from voxelry.data.slices.cut import SliceSample, draw_click
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.sources import SliceSource
from voxelry.data.units import Unit

__all__ = ["SliceDataset", "SliceSettings", "usual_edges"]


@dataclass(frozen=True, kw_only=True)
class SliceSettings(ViewSettings, Choice):
    """Prompts, how they are drawn, chosen (`Choice`) and shown (`ViewSettings`).

    With the methods `random_axis` and `oblique` planes are drawn anew in every epoch and give `repeats` items a case;
    the others list their planes, one item each. A `reach` of None is three quarters of a view's side.

    Attributes:
        organs: label values to learn, each a number or several that count as one organ (the first names it).
        slices: slices of a prompt, one number or (fewest, most).
        repeats: items of a case in an epoch, of `random_axis` and `oblique`.
        every_organ: items of `random_axis` and `oblique` are `repeats` of each organ of each case, with other slices
            each where there are enough, instead of one organ at random.
        clicks: items that differ in nothing but the place of the click, next to each other.
        mask: chance that a prompt has its slices' masks.
        field_of_view: chance that a prompt tells where the volume lies that its slices are from.
        edge: mm, of the frame, one number or one per organ's first label; by default `usual_edges(...)`.
        centre_jitter: the frame's centre moves by up to this many edges along each axis.
        edge_jitter: its edge grows or shrinks by up to this share, uniform in the logarithm.
    """

    organs: Sequence[int | Sequence[int]] = (1,)
    slices: int | Sequence[int] = 1
    repeats: int = 1
    every_organ: bool = False
    clicks: int = 1
    mask: float = 0.5
    field_of_view: float = 1.0
    grid: int | None = 64
    edge: float | Mapping[int, float] | None = None
    centre_jitter: float = 0.0
    edge_jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least_and_most[0] <= self.least_and_most[1]:
            raise SettingError(f"slices: expected a positive number, or fewest and most, got {self.slices}")
        if self.count < 1:
            raise SettingError(f"count: expected at least 1, got {self.count}")
        for name in ("mask", "oblique", "field_of_view"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name}: expected a chance from 0 to 1, got {getattr(self, name)}")
        for name in ("repeats", "clicks", "image_size", "view", "margin"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not self.organs or not all(isinstance(organ, int) or organ for organ in self.organs):
            raise SettingError("organs: expected at least one label value")
        different = {frozenset([organ] if isinstance(organ, int) else organ) for organ in self.organs}
        if len(different) < len(self.organs):
            raise SettingError(f"organs: expected each to have other label values, got {list(self.organs)}")

    @property
    def least_and_most(self) -> tuple[int, int]:
        """Slices of a prompt."""
        low, high = (self.slices, self.slices) if isinstance(self.slices, int) else self.slices
        return int(low), int(high)


class SliceDataset(Configured, torch.utils.data.Dataset[SliceCase]):
    """Prompts of some cases.

    Args:
        source: `VolumeSlices`, or `PreparedSlices` for slices on disk.
        augment: moves slices and truth together.
        truth: whether cases carry the organ's voxels on the volume's grid.
        seed: of everything random.

    Attributes:
        collate: makes a `SliceBatch` of cases.

    Raises:
        SettingError: a value out of range.
        DataError, FileError: a case can't be read or has none of the organs; one line naming the file.
    """

    Settings = SliceSettings

    collate = staticmethod(collate_slices)

    def __init__(
        self,
        source: SliceSource,
        *,
        augment: SliceAugment | None = None,
        truth: bool = False,
        seed: int = 0,
        **settings: Any,
    ):
        own = self._settings = settle(SliceSettings, settings)
        self.source, self.augment, self.truth, self.seed = source, augment, truth, seed
        self.organs = [(organ,) if isinstance(organ, int) else tuple(organ) for organ in own.organs]
        self.slices = own.least_and_most
        self.choice = Choice(**own_fields(own, Choice))
        self.views = ViewSettings(**own_fields(own, ViewSettings))
        first = [organ[0] for organ in self.organs]
        edge = own.edge
        if edge is None:
            edge = usual_edges(source, self.organs, margin=own.margin, truncation=own.truncation)
        self.edges = dict(edge) if isinstance(edge, Mapping) else dict.fromkeys(first, float(edge))
        if missing := [label for label in first if label not in self.edges]:
            raise SettingError(f"edge: expected one for each organ, got none for label {missing[0]}")
        self._items: list[tuple[int, int | None, Cut | str | None]] | None = None

    @property
    def repeats(self) -> int:
        """Items of a case in an epoch, where they are drawn."""
        return int(self._settings.repeats)

    @property
    def items(self) -> list[tuple[int, int | None, Cut | str | None]]:
        """Case, organ and plane of each item; None where they are drawn."""
        if self._items is None:
            cases = range(len(self.source.names))
            self._items = []
            if self.choice.method in ("random_axis", "oblique"):
                self._items = [
                    (case, organ, None)
                    for case, organ in self._drawn_organs()
                    for _ in range(self.repeats if self._settings.every_organ else 1)
                ]
            else:
                for case in cases:
                    for organ in self.source.organs_of(case, self.organs):
                        cuts = self.source.listed(case, self.organs[organ], self.choice)
                        self._items += [(case, organ, cut) for cut in cuts]
            self._items = [item for item in self._items for _ in range(self._settings.clicks)]
        return self._items

    def _drawn_organs(self) -> list[tuple[int, int | None]]:
        """Cases with an organ, or with None where it is drawn, too."""
        cases = range(len(self.source.names))
        if self._settings.every_organ:
            return [(case, organ) for case in cases for organ in self.source.organs_of(case, self.organs)]
        return [(case, None) for _ in range(self.repeats) for case in cases]

    def __len__(self) -> int:
        return len(self.items)

    def units(self) -> list[Unit]:
        """The items of each case that has any; what is drawn for them depends on their numbers, too."""
        numbers: dict[int, list[int]] = {}
        for number, (case, _, _) in enumerate(self.items):
            numbers.setdefault(case, []).append(number)
        units = self.source.units()
        return [
            replace(units[case], numbers=tuple(own), settings={**units[case].settings, "items": own})
            for case, own in numbers.items()
        ]

    def __getitem__(self, index: int) -> SliceCase:
        """Item `index` as `sample` makes it, in the first epoch."""
        return self.sample(index, 0)

    def sample(self, index: int, epoch: int) -> SliceCase:
        """Item `index` as it is in that pass over the data.

        Raises:
            FileError, DataError: the case can't be read or has none of the organs; one line naming the file.
                Through a DataLoader with workers it is always a DataError, of that same one line.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)}")
        with one_line_errors():
            return self._drawn(index % len(self), epoch)

    def _drawn(self, index: int, epoch: int) -> SliceCase:
        own: SliceSettings = self._settings
        prompt, clicked = divmod(index, own.clicks)
        generator = np.random.default_rng([self.seed, epoch, prompt])
        case, place, first = self.items[index]
        if place is None:
            present = self.source.organs_of(case, self.organs)
            place = present[int(generator.integers(len(present)))]
        organ = self.organs[place]
        edge = self.edges[organ[0]]
        low, high = self.slices
        count = int(generator.integers(low, high + 1))
        reach = 0.75 * edge * float(own.view) if own.reach is None else own.reach
        draw = Draw(case, organ, first, count, replace(self.choice, reach=reach))
        slices = self._slices((epoch, prompt), draw, generator)
        if own.clicks > 1:
            generator = np.random.default_rng([self.seed, epoch, prompt, 1 + clicked])
        samples = [sample.replace(click=draw_click(_mask(sample), generator)) for sample in slices]
        shape: OrganShape = self.source.shape(case, organ, own.truncation)
        give = bool(generator.random() < own.mask)
        give_field = bool(generator.random() < own.field_of_view)
        shift = generator.uniform(-1, 1, 3) * own.centre_jitter
        edge *= float(np.exp(np.log1p(own.edge_jitter) * generator.uniform(-1, 1)))
        movement: SliceMovement | None = None
        if self.augment is not None:
            movement = self.augment.draw(np.mean([sample.click_world for sample in samples], axis=0), generator)
            samples = [self.augment.move(sample, movement) for sample in samples]
            samples = [self.augment.change_intensity(sample, generator) for sample in samples]
            # what was made larger than the truncation allows for is clipped a little earlier
            shape = shape.moved(movement.motion)
        middle, _ = frame_of(samples, edge, given=[give] * len(samples))
        drawn = build_case(
            samples,
            edge=edge,
            views=replace(self.views, truncation=min(own.truncation, shape.truncation)),
            give_mask=give,
            give_field=give_field,
            centre=middle + shift * edge,
            movement=movement,
            shape=shape,
        )
        return drawn.padded(high).replace(truth=self.source.truth(case, organ) if self.truth else None)

    def _slices(self, asked: tuple[int, int], draw: Draw, generator: np.random.Generator) -> list[SliceSample]:
        """The slices of a prompt; with `every_organ` those that the organ's other prompts don't have.

        Args:
            asked: epoch and number of the prompt.
        """
        if not self._settings.every_organ or draw.first is not None:
            return self.source.slices(draw, generator)
        epoch, prompt = asked
        turn = prompt % self.repeats
        shared = np.random.default_rng([self.seed, epoch, prompt - turn])
        whole = replace(draw, count=draw.count * self.repeats)
        return self.source.slices(whole, shared)[turn * draw.count :][: draw.count]


def usual_edges(
    source: SliceSource,
    organs: Sequence[int | Sequence[int]],
    *,
    margin: float = 2.0,
    quantile: float = 0.9,
    truncation: float = 20.0,
) -> dict[int, float]:
    """The frame's edge for each organ, by its first label: `margin` times a large extent among the cases.

    A click may fall on one end of an organ, so an edge of twice its extent holds it wherever the click is.

    Args:
        source: the training cases; all are read once.
        organs: as for `SliceDataset`.
        margin: edges per extent.
        quantile: of the extents.
        truncation: of the distance maps that are made on the way, which a source may keep.

    Raises:
        DataError: an organ that no case has.
    """
    sets = [(organ,) if isinstance(organ, int) else tuple(organ) for organ in organs]
    extents: list[list[float]] = [[] for _ in sets]
    for case in range(len(source.names)):
        for place in source.organs_of(case, sets):
            extents[place].append(source.shape(case, sets[place], truncation).extent)
    if empty := [organ for organ, found in zip(sets, extents, strict=True) if not found]:
        raise DataError(f"no case has label {'+'.join(map(str, empty[0]))}, of {len(source.names)} cases")
    return {organ[0]: margin * float(np.quantile(found, quantile)) for organ, found in zip(sets, extents, strict=True)}


def _mask(sample: SliceSample) -> Tensor:
    if sample.mask is None:
        raise DataError(f"{sample.source or sample.name}: a slice without a mask can't be learned from")
    return sample.mask

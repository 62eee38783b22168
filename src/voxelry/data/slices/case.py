"""What `reconstruct` is fed: slices of an organ as a prompt in a canonical frame, and the true shape in it.

The frame is a cube with axes along the world's (right, anterior, superior); sources of slices turn the world before,
see `upright`, so that they are the volume's own. Its centre is the mean of the slices' anchors: the centroid of a
slice's mask where that is given, else its click. Its edge is the organ's usual one, and at least 1.3 times the
extent of a given mask. Of each slice the network sees a square view, a frame's edge wide, around the foot of the
centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.core.orientation import orientation_steps
from voxelry.core.space import Space
from voxelry.data.slices.augment import SliceMovement
from voxelry.data.slices.cut import SliceSample, regrid, view_plane
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.pointmaps import PointmapNormaliser, pointmap
from voxelry.ops.prompt import CLICK_SIGMA, WHOLE, PromptFields, click_heatmap

__all__ = ["SliceBatch", "SliceCase", "ViewSettings", "build_case", "collate_slices", "frame_of", "view_box"]

_PER_SLICE = (*(one.name for one in fields(PromptFields) if one.name not in WHOLE), "mask_target", "has_target")


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How slices are shown to the network, and what is told of the shape.

    Attributes:
        image_size: pixels of a view's side.
        view: the view's side in edges of the frame.
        grid: cells of the true distances; None for none.
        truncation: mm at which they are clipped.
        margin: `true_edge` is this many times the organ's extent.
    """

    image_size: int = 128
    view: float = 1.0
    grid: int | None = None
    truncation: float = 20.0
    margin: float = 2.0


@dataclass(kw_only=True)
class SliceTensors(PromptFields):
    """A prompt, and what is true. Lengths are mm, frame coordinates `(world - centre) / edge`.

    Attributes:
        centre: `(3,)` float32, world x, y, z of the frame.
        edge: `(1,)` float32, its side.
        mask_target: `(S, H, W)` float32, the true mask, whether or not it is given; `has_target` `(S,)` bool.
        sdf: `(1, n, n, n)` float32, the organ in the frame, clipped; None where the truth is unknown, as the next.
        centroid: `(3,)` float32, of the organ in the world.
        true_edge: `(1,)` float32, the edge that would suit this very organ: `log(true_edge / edge)` is to be found.
    """

    label: Tensor
    field_of_view: Tensor
    centre: Tensor
    edge: Tensor
    mask_target: Tensor
    has_target: Tensor
    sdf: Tensor | None = None
    centroid: Tensor | None = None
    true_edge: Tensor | None = None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def prompt(self) -> dict[str, Tensor]:
        """The fields of a prompt, without the truth: of a batch `Prompt(**batch.prompt())`."""
        return {one.name: getattr(self, one.name) for one in fields(PromptFields)}

    def tensors(self) -> dict[str, Tensor]:
        """All that are known."""
        given = {one.name: getattr(self, one.name) for one in fields(SliceTensors)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class SliceCase(SliceTensors):
    """One prompt of up to `S` slices, and what is true.

    Attributes:
        space: the volume's grid; the first slice's where there is no volume.
        name, source: of the case.
        truth: `(D, H, W)` bool on `space`; None unless asked for.
        slices: the slices themselves, before they became views.
        views: the grid of each view.
    """

    space: Space
    name: str
    source: str
    truth: Tensor | None = None
    slices: tuple[SliceSample, ...] = ()
    views: tuple[Space, ...] = ()

    def padded(self, slots: int) -> Self:
        """The same case with so many slices, those added invalid.

        Raises:
            SettingError: it has more.
        """
        if len(self.image) > slots:
            raise SettingError(f"slices: expected up to {slots}, got {len(self.image)}")
        return self.replace(**{name: _filled(getattr(self, name), slots, name) for name in _PER_SLICE})


@dataclass(kw_only=True)
class SliceBatch(SliceTensors):
    """Cases stacked: their tensors with a batch axis in front, the rest in lists.

    A tensor that some case lacks is None.
    """

    spaces: list[Space]
    names: list[str]
    sources: list[str]
    truths: list[Tensor | None]
    slices: list[tuple[SliceSample, ...]]
    views: list[tuple[Space, ...]]

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its stacked tensors on `device`; truths and slices stay where they are."""
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in self.tensors().items()}
        return self.replace(**moved)

    def pin_memory(self) -> Self:
        """The batch with its stacked tensors in pinned memory, as a loader asks for."""
        return self.replace(**{name: value.pin_memory() for name, value in self.tensors().items()})


def collate_slices(cases: Sequence[SliceCase]) -> SliceBatch:
    """Stack cases; those with fewer slices are filled up with slices that aren't valid.

    Raises:
        DataError: views or frames of different sizes; the message names both cases.
    """
    first = cases[0]
    for case in cases:
        sizes = [(one.image.shape[1:], None if one.sdf is None else one.sdf.shape) for one in (first, case)]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{case.name}: views {tuple(sizes[1][0])} and frame {sizes[1][1]} can't share a batch with "
                f"{first.name} of {tuple(sizes[0][0])} and {sizes[0][1]}"
            )
    slots = max(len(case.image) for case in cases)
    tensors = [case.padded(slots).tensors() for case in cases]
    shared = set.intersection(*(set(one) for one in tensors))
    stacked = {name: torch.stack([one[name] for one in tensors]) for name in tensors[0] if name in shared}
    return SliceBatch(
        **stacked,
        spaces=[case.space for case in cases],
        names=[case.name for case in cases],
        sources=[case.source for case in cases],
        truths=[case.truth for case in cases],
        slices=[case.slices for case in cases],
        views=[case.views for case in cases],
    )


def frame_of(
    slices: Sequence[SliceSample], edge: float, *, given: Sequence[bool], least: float = 1.3
) -> tuple[NDArray[np.float64], float]:
    """Centre (world mm, `(3,)`) and edge (mm) of the frame of some slices.

    Args:
        slices: each with a click, or with a mask that is given.
        edge: the organ's usual one.
        given: which slices' masks are given.
        least: the edge is at least this many times the longest side of a given mask along the world's axes.

    Raises:
        DataError: a slice without anything to go by.
    """
    anchors = []
    for sample, has_mask in zip(slices, given, strict=True):
        inside = None if sample.mask is None or not has_mask else torch.nonzero(sample.mask).double().numpy()
        if inside is None or not len(inside):
            anchors.append(sample.click_world)
            continue
        points = np.asarray(sample.space.to_world(inside))
        anchors.append(points.mean(axis=0))
        pixel = np.abs(sample.space.affine[:3, :2]).sum(axis=1)
        edge = max(edge, least * float((np.ptp(points, axis=0) + pixel).max()))
    return np.mean(anchors, axis=0), float(edge)


def build_case(
    slices: Sequence[SliceSample],
    *,
    edge: float,
    views: ViewSettings = ViewSettings(),
    give_mask: bool | Sequence[bool] = False,
    give_field: bool = True,
    centre: ArrayLike | None = None,
    movement: SliceMovement | None = None,
    shape: OrganShape | None = None,
) -> SliceCase:
    """The prompt of one or more slices of an organ, for training and prediction alike.

    Args:
        slices: intensities as the network knows them.
        edge: mm, the organ's usual edge; see `frame_of`.
        views: how they are shown.
        give_mask: whether masks are part of the prompt, for all slices or for each.
        give_field: whether the field of view of the slices' volume is part of the prompt, where there is a volume.
        centre: world mm of the frame instead of what the slices say.
        movement: turns, zooms and shifts each view (`SliceMovement.view`); its motion is not applied here.
        shape: the truth.

    Raises:
        SettingError: no slice.
        DataError: a slice with neither a click nor a given mask.
    """
    if not slices:
        raise SettingError("slices: expected at least one, got none")
    wanted = [give_mask] * len(slices) if isinstance(give_mask, bool) else list(give_mask)
    given = [want and sample.mask is not None for want, sample in zip(wanted, slices, strict=True)]
    middle, edge = frame_of(slices, edge, given=given)
    middle = middle if centre is None else np.asarray(centre, dtype=np.float64)
    shown = [
        _shown(sample, middle, edge, views, movement, has_mask) for sample, has_mask in zip(slices, given, strict=True)
    ]
    first = slices[0]
    volume = first.volume_space if give_field else None
    return SliceCase(
        **{name: torch.stack([tensors[name] for tensors, _ in shown]) for name in _PER_SLICE},
        **({} if shape is None else _truth(shape, middle, edge, views)),
        label=torch.tensor(first.label),
        field_of_view=torch.full((3, 4), torch.nan) if volume is None else view_box(volume, middle, edge),
        centre=torch.tensor(middle, dtype=torch.float32),
        edge=torch.tensor([edge], dtype=torch.float32),
        space=first.volume_space or first.space,
        name=first.name,
        source=first.source,
        slices=tuple(slices),
        views=tuple(target for _, target in shown),
    )


def _shown(
    sample: SliceSample,
    middle: NDArray[np.float64],
    edge: float,
    views: ViewSettings,
    movement: SliceMovement | None,
    has_mask: bool,
) -> tuple[dict[str, Tensor], Space]:
    """What is known of one slice, as the network sees it, and the grid of that view."""
    size = views.image_size
    target = view_plane(sample.space, middle, views.view * edge, size)
    target = target if movement is None else movement.view(target)
    seen, valid = regrid(sample.replace(pointmap=None), target)
    blank = torch.zeros(size, size)
    mask = blank if seen.mask is None else seen.mask.to(torch.float32)
    plane = target.affine[:3].copy()
    plane[:, 2] -= middle
    points = torch.from_numpy(pointmap(target)).movedim(-1, 0)
    tensors = {
        "image": seen.image,
        "click": blank if seen.click is None else click_heatmap(seen.click, (size, size), CLICK_SIGMA),
        "mask": mask if has_mask else blank,
        "has_mask": torch.tensor(has_mask),
        "pointmap": PointmapNormaliser.of_frame(middle, edge).normalise(points).to(torch.float32),
        "validity": valid.to(torch.float32),
        "slice_valid": torch.tensor(True),
        "plane": torch.from_numpy(plane / edge).to(torch.float32),
        "mask_target": mask,
        "has_target": torch.tensor(seen.mask is not None),
    }
    return tensors, target


def _truth(shape: OrganShape, middle: NDArray[np.float64], edge: float, views: ViewSettings) -> dict[str, Tensor]:
    known = {
        "centroid": torch.tensor(shape.centroid, dtype=torch.float32),
        "true_edge": torch.tensor([views.margin * shape.extent], dtype=torch.float32),
    }
    if views.grid is not None:
        known["sdf"] = torch.from_numpy(shape.canonical(middle, edge, views.grid, views.truncation))[None]
    return known


def view_box(space: Space, centre: ArrayLike, edge: float) -> Tensor:
    """Where a volume lies in a frame, edge to edge, however it is stored: `(3, 4)` float32 frame coordinates.

    Three half sides, of the axes that run along the world's x, y and z most and in their direction, and the middle.
    """
    upright = space.reorder(*orientation_steps(space))
    box = np.empty((3, 4))
    box[:, :3] = (upright.affine[:3, :3] * (np.asarray(upright.shape) / 2))[:, ::-1]
    box[:, 3] = np.asarray(upright.to_world((np.asarray(upright.shape) - 1) / 2)) - np.asarray(centre)
    return torch.from_numpy(box / edge).to(torch.float32)


def _filled(value: Tensor, slots: int, name: str) -> Tensor:
    """Along the slices' axis; a plane that fills up is the identity, so that it can be inverted."""
    missing = slots - len(value)
    if missing <= 0:
        return value
    blank = value.new_zeros(missing, *value.shape[1:])
    return torch.cat([value, torch.eye(3).expand_as(blank) if name == "plane" else blank])

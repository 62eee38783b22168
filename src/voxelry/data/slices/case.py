"""What `reconstruct` is fed: slices of an organ as a prompt in a canonical frame, and the true shape in it.

The frame is a cube with axes along the world's (right, anterior, superior); sources of slices turn the world before,
see `upright`, so that they are the volume's own. Its centre is the mean of the slices' anchors: the centroid of a
slice's mask where that is given, else its click. Its edge is the organ's usual one, and at least 1.3 times the
extent of a given mask. Of each slice the network sees a square view, a frame's edge wide, around the foot of the
centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.preprocess import orientation_steps
from voxelry.data.slices.augment import SliceMovement
from voxelry.data.slices.cut import SliceSample, regrid, view_plane
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.pointmaps import PointmapNormaliser, pointmap

__all__ = ["SliceBatch", "SliceCase", "build_case", "collate_slices", "frame_of", "view_box"]

_PROMPT = ("image", "click", "mask", "has_mask", "pointmap", "validity", "slice_valid", "plane")
_WHOLE = ("label", "field_of_view")  # of a prompt, but not of each slice
_TENSORS = (*_PROMPT, *_WHOLE, "mask_target", "has_target", "centre", "edge", "centroid", "true_edge", "sdf")


@dataclass
class SliceCase:
    """One prompt of up to `S` slices, and what is true. Lengths are mm, frame coordinates `(world - centre) / edge`.

    Attributes:
        image: `(S, C, H, W)` float32.
        click: `(S, H, W)` float32, a Gaussian of height 1 around the click.
        mask: `(S, H, W)` float32, the given mask; zeros where none is given.
        has_mask: `(S,)` bool.
        pointmap: `(S, 3, H, W)` float32, frame coordinates of every pixel.
        validity: `(S, H, W)` float32, 1 where a pixel lies in the slice.
        slice_valid: `(S,)` bool, False for slices that fill up.
        plane: `(S, 3, 3)` float32, `(row, column, 1)` to frame coordinates.
        label: `()` int64, the organ.
        field_of_view: `(3, 4)` float32, see `view_box`; NaN where a prompt doesn't tell it.
        centre: `(3,)` float32, world x, y, z of the frame.
        edge: `(1,)` float32, its side.
        space: the volume's grid; the first slice's where there is no volume.
        name, source: of the case.
        mask_target: `(S, H, W)` float32, the true mask, whether or not it is given; `has_target` `(S,)` bool.
        sdf: `(1, n, n, n)` float32, the organ in the frame, clipped; None where the truth is unknown, as the next.
        centroid: `(3,)` float32, of the organ in the world.
        true_edge: `(1,)` float32, the edge that would suit this very organ: `log(true_edge / edge)` is to be found.
        truth: `(D, H, W)` bool on `space`; None unless asked for.
        slices: the slices themselves, before they became views.
        views: the grid of each view.
    """

    image: Tensor
    click: Tensor
    mask: Tensor
    has_mask: Tensor
    pointmap: Tensor
    validity: Tensor
    slice_valid: Tensor
    plane: Tensor
    label: Tensor
    field_of_view: Tensor
    centre: Tensor
    edge: Tensor
    space: Space
    name: str
    source: str
    mask_target: Tensor
    has_target: Tensor
    sdf: Tensor | None = None
    centroid: Tensor | None = None
    true_edge: Tensor | None = None
    truth: Tensor | None = None
    slices: tuple[SliceSample, ...] = ()
    views: tuple[Space, ...] = ()

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def prompt(self) -> dict[str, Tensor]:
        """The fields of a prompt, without the truth and without a batch axis."""
        return {name: getattr(self, name) for name in (*_PROMPT, *_WHOLE)}


@dataclass
class SliceBatch:
    """Cases stacked: the tensors of `SliceCase` with a batch axis in front, the rest in lists.

    A tensor that some case lacks is None.
    """

    image: Tensor
    click: Tensor
    mask: Tensor
    has_mask: Tensor
    pointmap: Tensor
    validity: Tensor
    slice_valid: Tensor
    plane: Tensor
    label: Tensor
    field_of_view: Tensor
    centre: Tensor
    edge: Tensor
    mask_target: Tensor
    has_target: Tensor
    sdf: Tensor | None
    centroid: Tensor | None
    true_edge: Tensor | None
    spaces: list[Space]
    names: list[str]
    sources: list[str]
    truths: list[Tensor | None]
    slices: list[tuple[SliceSample, ...]]
    views: list[tuple[Space, ...]]

    def __len__(self) -> int:
        return len(self.image)

    def prompt(self) -> dict[str, Tensor]:
        """The fields of a batched prompt: `Prompt(**batch.prompt())`."""
        return {name: getattr(self, name) for name in (*_PROMPT, *_WHOLE)}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its stacked tensors on `device`; truths and slices stay where they are."""
        given = {name: getattr(self, name) for name in _TENSORS}
        moved = {
            name: value.to(device, non_blocking=non_blocking) for name, value in given.items() if value is not None
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The batch with its stacked tensors in pinned memory, as a loader asks for."""
        given = {name: getattr(self, name) for name in _TENSORS}
        return replace(self, **{name: value.pin_memory() for name, value in given.items() if value is not None})


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
    stacked: dict[str, Tensor | None] = {}
    for name in _TENSORS:
        values = [getattr(case, name) for case in cases]
        if name in (*_PROMPT, "mask_target", "has_target"):
            values = [_filled(value, slots, name) for value in values]
        stacked[name] = None if any(value is None for value in values) else torch.stack(values)
    return SliceBatch(
        **stacked,  # type: ignore[arg-type]
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
    image_size: int = 128,
    slots: int | None = None,
    give_mask: bool | Sequence[bool] = False,
    give_field: bool = True,
    centre: ArrayLike | None = None,
    view: float = 1.0,
    sigma: float = 2.0,
    movement: SliceMovement | None = None,
    shape: OrganShape | None = None,
    grid: int | None = None,
    truncation: float = 20.0,
    margin: float = 2.0,
    truth: Tensor | None = None,
    centre_shift: ArrayLike | None = None,
) -> SliceCase:
    """The prompt of one or more slices of an organ, for training and prediction alike.

    Args:
        slices: intensities as the network knows them.
        edge: mm, the organ's usual edge; see `frame_of`.
        image_size: pixels of a view's side.
        slots: slices that the tensors hold; by default as many as there are.
        give_mask: whether masks are part of the prompt, for all slices or for each.
        give_field: whether the field of view of the slices' volume is part of the prompt, where there is a volume.
        centre: world mm of the frame instead of what the slices say.
        view: the view's side in edges.
        sigma: radius of the click's Gaussian in pixels.
        movement: turns, zooms and shifts each view (`SliceMovement.view`); its motion is not applied here.
        shape: the truth.
        grid, truncation: cells and mm of the true distances; no `grid`, no distances.
        margin: `true_edge` is this many times the organ's extent.
        truth: `(D, H, W)` bool on the volume's grid, passed on.
        centre_shift: mm added to the centre.

    Raises:
        SettingError: no slice, or more of them than `slots`.
        DataError: a slice with neither a click nor a given mask.
    """
    count = len(slices)
    slots = count if slots is None else slots
    if not 1 <= count <= slots:
        raise SettingError(f"slices: expected 1 to {slots}, got {count}")
    wanted = [give_mask] * count if isinstance(give_mask, bool) else list(give_mask)
    given = [want and sample.mask is not None for want, sample in zip(wanted, slices, strict=True)]
    middle, edge = frame_of(slices, edge, given=given)
    middle = middle if centre is None else np.asarray(centre, dtype=np.float64)
    middle = middle + (0.0 if centre_shift is None else np.asarray(centre_shift, dtype=np.float64))
    frame = PointmapNormaliser.of_frame(middle, edge)
    parts: dict[str, list[Tensor]] = {name: [] for name in (*_PROMPT, "mask_target", "has_target")}
    views = []
    for sample, has_mask in zip(slices, given, strict=True):
        target = view_plane(sample.space, middle, view * edge, image_size)
        target = target if movement is None else movement.view(target)
        seen, valid = regrid(sample.replace(pointmap=None), target)
        blank = torch.zeros(image_size, image_size)
        mask = blank if seen.mask is None else seen.mask.to(torch.float32)
        plane = target.affine[:3].copy()
        plane[:, 2] -= middle
        views.append(target)
        parts["image"].append(seen.image)
        parts["click"].append(blank if seen.click is None else _blob(seen.click, image_size, sigma))
        parts["mask"].append(mask if has_mask else blank)
        parts["has_mask"].append(torch.tensor(has_mask))
        parts["pointmap"].append(frame.normalise(torch.from_numpy(pointmap(target)).movedim(-1, 0)).to(torch.float32))
        parts["validity"].append(valid.to(torch.float32))
        parts["slice_valid"].append(torch.tensor(True))
        parts["plane"].append(torch.from_numpy(plane / edge).to(torch.float32))
        parts["mask_target"].append(mask)
        parts["has_target"].append(torch.tensor(seen.mask is not None))
    tensors = {name: _filled(torch.stack(values), slots, name) for name, values in parts.items()}
    first = slices[0]
    volume = first.volume_space if give_field else None
    known: dict[str, Tensor] = {}
    if shape is not None:
        known = {
            "centroid": torch.tensor(shape.centroid, dtype=torch.float32),
            "true_edge": torch.tensor([margin * shape.extent], dtype=torch.float32),
        }
        if grid is not None:
            known["sdf"] = torch.from_numpy(shape.canonical(middle, edge, grid, truncation))[None]
    return SliceCase(
        **tensors,
        **known,
        label=torch.tensor(first.label),
        field_of_view=torch.full((3, 4), torch.nan) if volume is None else view_box(volume, middle, edge),
        centre=torch.tensor(middle, dtype=torch.float32),
        edge=torch.tensor([edge], dtype=torch.float32),
        space=first.volume_space or first.space,
        name=first.name,
        source=first.source,
        truth=truth,
        slices=tuple(slices),
        views=tuple(views),
    )


def view_box(space: Space, centre: ArrayLike, edge: float) -> Tensor:
    """Where a volume lies in a frame, edge to edge, however it is stored: `(3, 4)` float32 frame coordinates.

    Three half sides, of the axes that run along the world's x, y and z most and in their direction, and the middle.
    """
    upright = space.reorder(*orientation_steps(space))
    box = np.empty((3, 4))
    box[:, :3] = (upright.affine[:3, :3] * (np.asarray(upright.shape) / 2))[:, ::-1]
    box[:, 3] = np.asarray(upright.to_world((np.asarray(upright.shape) - 1) / 2)) - np.asarray(centre)
    return torch.from_numpy(box / edge).to(torch.float32)


def _blob(click: Tensor, size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float32)
    down, right = (torch.exp(-0.5 * ((places - at) / sigma) ** 2) for at in click)
    return down[:, None] * right


def _filled(value: Tensor, slots: int, name: str) -> Tensor:
    """Along the slices' axis; a plane that fills up is the identity, so that it can be inverted."""
    missing = slots - len(value)
    if missing <= 0:
        return value
    blank = value.new_zeros(missing, *value.shape[1:])
    return torch.cat([value, torch.eye(3).expand_as(blank) if name == "plane" else blank])

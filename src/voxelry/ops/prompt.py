"""What a shape is asked from: slices, where they lie, and what was pointed at.

The frame is a cube with axes along world RAS, around the prompt: a world point `p` in mm has the frame coordinates
`(p - centre) / edge`, in x, y, z order and inside [-0.5, 0.5] in the cube. A grid of `n` cells per axis has its cell
centres at `(i + 0.5) / n - 0.5`, its array order is z, y, x. A plane is an affine `(3, 3)` from slice index
`(row, column, 1)` to frame coordinates, so an oblique or mirrored slice is nothing special.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = [
    "CLICK_SIGMA",
    "WHOLE",
    "Prompt",
    "PromptFields",
    "box_points",
    "click_heatmap",
    "frame_points",
    "plane_points",
    "project",
]


CLICK_SIGMA = 2.0  # radius of a click's blob, in pixels


@dataclass(kw_only=True)
class PromptFields:
    """What is known of a prompt of up to `S` slices of `H × W` pixels each. A batch has an axis `B` in front of each.

    Attributes:
        image: `(S, C, H, W)`, normalised intensities.
        click: `(S, H, W)` in [0, 1], a blob around the click; zeros on slices that were not clicked.
        mask: `(S, H, W)` in [0, 1], zeros where there is none.
        has_mask: `(S,)` bool.
        pointmap: `(S, 3, H, W)`, frame coordinates of every pixel; finite everywhere.
        validity: `(S, H, W)` in [0, 1], 0 where a pixel lies outside the scanned field.
        slice_valid: `(S,)` bool; False for slices that only fill the batch up.
        plane: `(S, 3, 3)`, slice index to frame coordinates.
        label: `()` int, the organ asked for; None for the only one.
        field_of_view: `(3, 4)`, the box that was scanned, as far as it is known: half sides along its x, y and z,
            then its middle, in frame coordinates. NaN in samples without one, such as a lone slice; None for none.
            An organ lies inside of it, and where volumes are cut out around an organ it says where in it.
    """

    image: Tensor
    click: Tensor
    mask: Tensor
    has_mask: Tensor
    pointmap: Tensor
    validity: Tensor
    slice_valid: Tensor
    plane: Tensor
    label: Tensor | None = None
    field_of_view: Tensor | None = None


WHOLE = ("label", "field_of_view")
"""Fields of a prompt, but not of each of its slices."""


@dataclass(kw_only=True)
class Prompt(PromptFields):
    """A batch of prompts, `B` samples."""

    @classmethod
    def build(cls, image: Tensor, plane: Tensor, *, click: Tensor | None = None, **given: Tensor) -> Prompt:
        """A prompt from its least: what is not given is absent, and follows from the planes.

        Args:
            image: `(B, S, C, H, W)`.
            plane: `(B, S, 3, 3)`.
            click: `(B, S, 2)` as row and column, NaN on slices without one; None for none at all.
            given: other fields. Without `has_mask` every slice of a given `mask` counts.

        Raises:
            SettingError: shapes that don't fit together.
        """
        if image.ndim != 5:
            raise SettingError(f"image: expected shape (B, S, C, H, W), got {tuple(image.shape)}")
        lead, size = image.shape[:2], image.shape[3:]
        blank = image.new_zeros(*lead, *size)
        absent = {
            "mask": blank,
            "has_mask": torch.full(lead, "mask" in given, device=image.device),
            "validity": blank + 1,
            "slice_valid": torch.full(lead, True, device=image.device),
        }
        known = {name: value.bool() if name.endswith("valid") else value for name, value in (absent | given).items()}
        plane = plane.to(image.dtype)
        if plane.shape != (*lead, 3, 3):
            raise SettingError(f"plane: expected shape {(*lead, 3, 3)}, got {tuple(plane.shape)}")
        plane = torch.where(known["slice_valid"][..., None, None], plane, torch.eye(3).to(plane))
        return cls(
            image=image,
            plane=plane,
            click=blank if click is None else click_heatmap(click.to(image), size, CLICK_SIGMA),
            pointmap=plane_points(plane, size),
            **known,
        ).check()

    def check(self) -> Prompt:
        """Return this prompt if its tensors fit together.

        Raises:
            SettingError: names the first that doesn't, and what was expected.
        """
        if self.image.ndim != 5:
            raise SettingError(f"image: expected shape (B, S, C, H, W), got {tuple(self.image.shape)}")
        lead, size = tuple(self.image.shape[:2]), tuple(self.image.shape[3:])
        expected = dict.fromkeys(("click", "mask", "validity"), (*lead, *size))
        expected |= {"has_mask": lead, "slice_valid": lead, "plane": (*lead, 3, 3), "pointmap": (*lead, 3, *size)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise SettingError(f"{name}: expected shape {shape}, got {found}")
        if self.label is not None and tuple(self.label.shape) != lead[:1]:
            raise SettingError(f"label: expected shape {lead[:1]}, got {tuple(self.label.shape)}")
        if self.field_of_view is not None and tuple(self.field_of_view.shape) != (*lead[:1], 3, 4):
            raise SettingError(
                f"field_of_view: expected shape {(*lead[:1], 3, 4)}, got {tuple(self.field_of_view.shape)}"
            )
        if not bool(self.slice_valid.any(dim=1).all()):
            raise SettingError("slice_valid: expected at least one slice in every sample")
        return self

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.image)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Prompt:
        """The same prompt on another device; `dtype` is that of the floating-point tensors."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: moved(value) for name, value in given.items() if value is not None})

    def select(self, samples: Sequence[int] | slice | Tensor) -> Prompt:
        """Some of the samples, as a batch."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[samples] for name, value in given.items() if value is not None})

    def channels(self) -> Tensor:
        """Everything that is known of each pixel, `(B, S, C + 7, H, W)`.

        Image, click, mask, whether there is a mask, validity and the frame's x, y, z.
        """
        flag = self.has_mask[..., None, None].to(self.image).expand_as(self.mask)
        known = self.mask * flag
        marks = torch.stack((self.click, known, flag, self.validity), dim=2)
        return torch.cat((self.image * self.validity[:, :, None], marks, self.pointmap), dim=2)

    def box(self) -> tuple[Tensor, Tensor]:
        """The field of view `(B, 3, 4)`, twice the frame where it isn't known, and whether it is known `(B,)` bool."""
        whole = torch.eye(3, 4).to(self.image).expand(len(self), -1, -1)
        if self.field_of_view is None:
            return whole, whole.new_zeros(len(self), dtype=torch.bool)
        known = self.field_of_view.isfinite().all(dim=2).all(dim=1)
        return torch.where(known[:, None, None], self.field_of_view, whole), known

    def around(self, centre: Tensor, edge: Tensor) -> Prompt:
        """The same prompt in the coordinates of another cube: `(B, 3)` and `(B,)`, in this frame's coordinates."""

        def moved(affine: Tensor, scale: Tensor, origin: Tensor) -> Tensor:
            return torch.cat((affine[..., :-1], affine[..., -1:] - origin[..., None]), dim=-1) / scale[..., None]

        each, size = centre[:, None].to(self.plane), edge[:, None, None].to(self.plane)
        field = self.field_of_view
        return replace(
            self,
            plane=moved(self.plane, size, each),
            pointmap=(self.pointmap - each[..., None, None]) / size[..., None, None],
            field_of_view=None if field is None else moved(field, size[:, 0], each[:, 0]),
        )

    @classmethod
    def collate(cls, prompts: Sequence[Prompt]) -> Prompt:
        """One batch of several with the same image size; the shorter stacks of slices are filled up as invalid."""
        slices = max(prompt.image.shape[1] for prompt in prompts)
        labels = [prompt.label for prompt in prompts]
        parts = [prompt.padded(slices) for prompt in prompts]
        names = [field.name for field in fields(cls) if field.name not in WHOLE]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        known = [label for label in labels if label is not None]
        if known and len(known) != len(labels):
            raise SettingError("label: expected one in every prompt of a batch, or in none")
        unknown = parts[0].plane.new_full((1, 3, 4), torch.nan)
        views = [
            unknown.expand(len(prompt), -1, -1) if prompt.field_of_view is None else prompt.field_of_view
            for prompt in prompts
        ]
        return cls(**joined, label=torch.cat(known) if known else None, field_of_view=torch.cat(views)).check()

    def padded(self, slices: int) -> Prompt:
        """The same prompt with `slices` slices, those added invalid."""
        missing = slices - self.image.shape[1]
        if missing <= 0:
            return self
        names = [field.name for field in fields(self) if field.name not in ("plane", *WHOLE)]
        grown = {}
        for name in names:
            value = getattr(self, name)
            grown[name] = torch.cat((value, value.new_zeros(len(value), missing, *value.shape[2:])), dim=1)
        level = torch.eye(3).to(self.plane).expand(len(self), missing, 3, 3)
        return replace(self, **grown, plane=torch.cat((self.plane, level), dim=1))


def box_points(box: Tensor, points: Tensor) -> Tensor:
    """Where points are in boxes, `(B, 3, 4), (N, 3) -> (B, 3, N)`: along its sides, from -1 to 1 inside."""
    inverse = torch.linalg.inv(box[..., :3].float()).to(box)
    return inverse @ (points - box[:, None, :, 3]).mT


def plane_points(plane: Tensor, size: Sequence[int]) -> Tensor:
    """Frame coordinates of every pixel of a slice, `(..., 3, 3) -> (..., 3, H, W)`."""
    rows, columns = (torch.arange(length, device=plane.device, dtype=plane.dtype) for length in size)
    down, right, origin = (part[..., None, None] for part in plane.unbind(-1))
    return origin + down * rows[:, None] + right * columns


def frame_points(grid: int, like: Tensor) -> Tensor:
    """Frame coordinates of the cells of a grid, `(n, n, n, 3)`: array order z, y, x, coordinates x, y, z."""
    centres = (torch.arange(grid, device=like.device, dtype=like.dtype) + 0.5) / grid - 0.5
    return torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij")[::-1], dim=-1)


def project(points: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
    """Drop points onto planes at a right angle.

    Args:
        points: `(N, 3)`, frame coordinates.
        plane: `(..., 3, 3)`.

    Returns:
        Slice index `(..., N, 2)` as row and column, and the way from there to the point, `(..., N, 3)`; its length
        is the distance to the plane, and it doesn't depend on which side of the plane its axes call the front.
    """
    axes, origin = plane[..., :2], plane[..., 2]
    gram = axes.mT @ axes
    (a, b), (c, d) = (row.unbind(-1) for row in gram.unbind(-2))
    inverse = torch.stack((d, -b, -c, a), dim=-1).unflatten(-1, (2, 2)) / (a * d - b * c)[..., None, None]
    away = points - origin[..., None, :]
    index = away @ (axes @ inverse)
    return index, away - index @ axes.mT


def click_heatmap(click: Tensor, size: Sequence[int], sigma: float) -> Tensor:
    """A Gaussian of height 1 around each click, `(..., 2) -> (..., H, W)`; zeros where it is NaN.

    Args:
        click: row and column.
        size: `H, W`.
        sigma: its radius in pixels.
    """
    rows, columns = (torch.arange(length, device=click.device, dtype=click.dtype) for length in size)
    row, column = click[..., 0, None], click[..., 1, None]
    down, right = (torch.exp(-0.5 * ((places - at) / sigma) ** 2) for places, at in ((rows, row), (columns, column)))
    return torch.nan_to_num(down[..., :, None] * right[..., None, :])


def sample_plane(features: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
    """Read maps of slices at slice indices, bilinear, zeros outside.

    Args:
        features: `(B, C, h, w)`, maps that cover a slice of `size` pixels, coarser by a whole factor per axis.
        index: `(B, N, 2)`, row and column in pixels of the slice.
        size: `H, W` of the slice.

    Returns:
        `(B, C, N)`.
    """
    covered = index.new_tensor([-(-length // own) * own for length, own in zip(size, features.shape[2:], strict=True)])
    places = ((2 * index + 1) / covered - 1).flip(-1)
    return F.grid_sample(features, places[:, :, None].to(features), align_corners=False)[..., 0]

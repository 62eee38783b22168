"""Images at the voxel size that a network learned from, and what it finds there back on the images' own grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.preprocess import move
from voxelry.data.sample import Sample
from voxelry.tasks.segment.predict import MICROSCOPIC_MM

__all__ = [
    "assumption",
    "at_learned_size",
    "boxes_on",
    "check_object_size",
    "common_object_size",
    "common_size",
    "has_voxel_size",
    "learned_grid",
    "size_for_objects",
    "size_of_objects",
]

_ALIKE = 1.25  # times as long or short: voxels that a network takes for those it knows
_FARTHEST = 4.0  # times: beyond, a wrong header is likelier than such an image


def has_voxel_size(space: Space) -> bool:
    """Whether a grid was told by its file: one that isn't has voxels of 1 mm, along the world's axes from 0 on."""
    return not np.array_equal(space.affine, Space.from_spacing(space.shape).affine)


def common_size(spaces: Sequence[Space]) -> tuple[float, ...] | None:
    """The median voxel size of some grids in mm; None where one is not known or unlike the others."""
    if not spaces or not all(has_voxel_size(space) for space in spaces):
        return None
    sizes = np.array([space.spacing for space in spaces])
    middle = np.median(sizes, axis=0)
    unlike = np.maximum(sizes / middle, middle / sizes) > _ALIKE
    return None if unlike.any() else tuple(middle.tolist())


def common_object_size(samples: Iterable[Sample]) -> float | None:
    """The median size of the objects of some samples, in mm; None without objects.

    The size of an object is the geometric mean of the edges of its box. Objects that the border of an image cuts don't
    count where there are others.
    """
    whole, cut = [], []
    for sample in samples:
        if sample.boxes is None or not len(sample.boxes):
            continue
        boxes, ndim = sample.boxes.double().numpy(), sample.ndim
        low, high = boxes[:, :ndim], boxes[:, ndim:]
        sizes = ((high - low) * sample.space.spacing).prod(axis=1) ** (1 / ndim)
        inside = ((low > 0) & (high < np.asarray(sample.space.shape) - 1)).all(axis=1)
        whole.append(sizes[inside])
        cut.append(sizes[~inside])
    known = np.concatenate(whole) if sum(map(len, whole)) else np.concatenate([np.empty(0), *cut])
    return float(np.median(known)) if len(known) else None


def size_for_objects(voxel_size: Sequence[float] | None, learned: float, wanted: float, ndim: int) -> tuple[float, ...]:
    """The size of voxels in which objects of one size look as those that a network learned from.

    Args:
        voxel_size: mm along each axis that it learned from; None: voxels of different sizes, taken as they were.
        learned: size of the objects that it learned from, in mm, or in voxels where `voxel_size` is None.
        wanted: size of the objects of an image, in mm, or in voxels where the image doesn't say how large they are.
    """
    return tuple(step * wanted / learned for step in voxel_size or (1.0,) * ndim)


def check_object_size(space: Space, wanted: float) -> None:
    """Refuse objects that an image can't hold, as of a size in another unit than its own.

    Raises:
        SettingError: they are larger than the image or smaller than its voxels; names the unit that is expected.
    """
    extent, least = max(np.multiply(space.shape, space.spacing)), min(space.spacing)
    if least <= wanted <= extent:
        return
    told, size = has_voxel_size(space), f"{wanted:g}"
    what = "larger than the image" if wanted > extent else "smaller than a voxel"
    voxel = float(np.prod(space.spacing) ** (1 / space.ndim))
    if told:
        why = f"mm, as the file says how large its voxels are ({size} voxels of it are {wanted * voxel:.3g} mm)"
    else:
        why = "voxels, as the file doesn't say how large they are (or give that with --spacing, in mm)"
    raise SettingError(f"task.object_size: objects of {size} {'mm' if told else 'voxels'} are {what}; expected {why}")


def learned_grid(space: Space, voxel_size: Sequence[float] | None, *, sure: bool = False) -> Space:
    """The grid that a network which learned from voxels of that size (mm per axis) is shown of an image.

    Along each axis whose voxels are more than 1.25 times as long or short as those learned from, it has those. An
    image keeps its grid where its own voxel size or the learned one isn't known, or where they are more than 4 times
    apart along some axis: then the header is in doubt. Not where the size is `sure`, as somebody gave that of the
    objects.
    """
    if voxel_size is None or not (sure or has_voxel_size(space)):
        return space
    own, learned = np.asarray(space.spacing), np.asarray(voxel_size, dtype=np.float64)
    apart = np.maximum(own / learned, learned / own)
    if (apart.max() > _FARTHEST and not sure) or not (apart > _ALIKE).any():
        return space
    return space.respace(np.where(apart > _ALIKE, learned, own).tolist())


def assumption(space: Space, voxel_size: Sequence[float]) -> str:
    """What `learned_grid` takes for granted or changes, in one line; empty where the voxels are those learned from."""
    learned = _size(voxel_size)
    if not has_voxel_size(space):
        return f"has no voxel size; taken to be {learned}, as in training (give another with --spacing, in mm)"
    target = learned_grid(space, voxel_size)
    if target is not space:
        return f"voxels of {_size(space.spacing)}; seen at {_size(target.spacing)}, as the model learned from {learned}"
    if any(max(own / step, step / own) > _ALIKE for own, step in zip(space.spacing, voxel_size, strict=True)):
        return (
            f"voxels of {_size(space.spacing)}, more than {_FARTHEST:g} times as long or short as the {learned} that "
            "the model learned from; taken as they are (if it is wrong, give another with --spacing, in mm)"
        )
    return ""


def size_of_objects(space: Space, voxel_size: Sequence[float], wanted: float) -> str:
    """What a size of objects comes to, in one line.

    Args:
        voxel_size: that they are seen at, see `size_for_objects`.
        wanted: their size, as in `size_for_objects`.
    """
    if not has_voxel_size(space):
        factor = np.round(1 / np.asarray(voxel_size), 2).tolist()
        cubes = "" if len(set(factor)) == 1 else ", taken as cubes (give their size with --spacing, in mm)"
        return (
            f"objects of about {wanted:g} voxels{cubes}; seen {'×'.join(f'{one:g}' for one in factor)} times as large"
        )
    seen = learned_grid(space, voxel_size, sure=True)
    return f"objects of about {_size([wanted])}, voxels of {_size(space.spacing)}; seen at {_size(seen.spacing)}"


def _size(steps: Sequence[float]) -> str:
    """A voxel size to read, in µm or mm."""
    unit, factor = ("µm", 1000.0) if max(steps) < MICROSCOPIC_MM else ("mm", 1.0)
    return f"{'×'.join(f'{step * factor:.3g}' for step in steps)} {unit}"


def at_learned_size(image: Tensor, space: Space, target: Space) -> Tensor:
    """An image `(C, *space.shape)` resampled linearly, smoothed first where it shrinks (see `preprocess.move`)."""
    moved = move(Sample(image.detach().cpu(), space, "", ""), target)
    return moved.image.to(image.device)


def boxes_on(boxes: Tensor, target: Space, space: Space) -> Tensor:
    """Boxes `(K, 2 * ndim)` in index coordinates of `target` in those of `space`, which has the same directions.

    They are cut off at the edges of the image.
    """
    ndim = space.ndim
    corner = space.to_index(target.origin)
    scale = np.asarray(target.spacing) / np.asarray(space.spacing)
    factors = torch.from_numpy(np.tile(scale, 2)).to(boxes)
    shift = torch.from_numpy(np.tile(corner.reshape(ndim), 2)).to(boxes)
    last = torch.tensor(space.shape * 2).to(boxes) - 0.5  # the other grid may reach a little beyond the image
    return (boxes * factors + shift).clamp(min=-0.5).minimum(last)

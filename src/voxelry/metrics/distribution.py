"""How far a set of images is from another, as sets: no image has a partner.

`sliced_wasserstein` needs nothing but the images. `fid` needs the weights of a network trained on photographs; it
is here for comparison with what others report.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from voxelry.core.errors import FileError, SettingError
from voxelry.core.optional import require

__all__ = ["cuts", "fid", "laplacian_pyramid", "sliced_wasserstein"]


def sliced_wasserstein(
    samples: Tensor,
    data: Tensor,
    *,
    patch_size: int = 7,
    patches: int = 4096,
    directions: int = 128,
    levels: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Sliced Wasserstein distance between the patches of two sets, at several scales.

    Patches are cut from each level of a Laplacian pyramid, so that fine texture and coarse shape are judged apart
    (Karras et al. 2018, arXiv:1710.10196, section 5). They are normalised per channel by the mean and the deviation
    of the data's patches, on both sides, so that a difference in contrast counts. Then they are projected on random
    directions, and in each the distance is the mean difference of the sorted projections (Rabin et al. 2011).

    Places and directions depend on the seed alone: equal sets have distance 0, and two networks are judged by the
    same draw. Two finite draws of the same images differ a little, so compare with the distance between two halves
    of the data.

    Args:
        samples: `(N, C, *spatial)`.
        data: `(M, C, *spatial)`, the same C and rank; sizes may differ.
        patch_size: voxels along each axis; less where an axis is shorter.
        patches: from each set, at each level.
        directions: random unit vectors.
        levels: of the pyramid, the finest first; None halves while some axis holds two patches.
        seed: of the places and the directions.

    Returns:
        `swd_level_0` (finest), `swd_level_1`, ..., and `swd`, their mean; in deviations of the data, 0 at best.

    Raises:
        SettingError: an empty set, or sets of different channels or rank.
    """
    if len(samples) == 0 or len(data) == 0 or samples.ndim != data.ndim or samples.shape[1] != data.shape[1]:
        raise SettingError(
            "samples: expected two sets (N, C, *spatial) of the same channels and rank, "
            f"got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    samples, data = samples.float(), data.float().to(samples.device)
    pairs = zip(
        laplacian_pyramid(samples, smallest=patch_size, levels=levels),
        laplacian_pyramid(data, smallest=patch_size, levels=levels),
        strict=False,
    )
    distances: dict[str, float] = {}
    for level, (ours, theirs) in enumerate(pairs):
        size = [min(patch_size, *axes) for axes in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
        generator = torch.Generator().manual_seed(seed + level)
        places = torch.rand((patches, 1 + len(size)), generator=generator)
        near, far = _patches(ours, places, size), _patches(theirs, places, size)
        mean = far.mean(dim=(0, 1))
        deviation = far.std(dim=(0, 1)).clamp(min=1e-8)
        near, far = (((part - mean) / deviation).flatten(1) for part in (near, far))
        slices = F.normalize(torch.randn((near.shape[1], directions), generator=generator), dim=0).to(near)
        gaps = (near @ slices).sort(dim=0).values - (far @ slices).sort(dim=0).values
        distances[f"swd_level_{level}"] = float(gaps.abs().mean())
    return distances | {"swd": sum(distances.values()) / len(distances)}


def laplacian_pyramid(images: Tensor, *, smallest: int = 7, levels: int | None = None) -> list[Tensor]:
    """Images split into bands of detail, finest first; the last is what is left, blurred and small.

    Burt & Adelson 1983, with the binomial window (1, 4, 6, 4, 1) / 16. An axis is halved while it holds at least
    twice `smallest`, so that thin volumes stay as thick as they are.

    Args:
        images: `(N, C, *spatial)`.
        smallest: no axis gets shorter than this by halving.
        levels: at most so many; None for as many as there are.
    """
    pyramid: list[Tensor] = []
    while levels is None or len(pyramid) + 1 < levels:
        halved = [axis for axis in range(2, images.ndim) if images.shape[axis] >= max(2 * smallest, 6)]
        if not halved:
            break
        coarse = images
        for axis in halved:
            coarse = _blur(coarse, axis).index_select(axis, torch.arange(0, images.shape[axis], 2).to(images.device))
        blurred = coarse
        for axis in halved:
            blurred = _widen(blurred, axis, images.shape[axis])
        pyramid.append(images - blurred)
        images = coarse
    return [*pyramid, images]


def fid(
    samples: Tensor, data: Tensor, *, weights: str | os.PathLike[str], slices: int = 8, features: int = 2048
) -> float:
    """Fréchet inception distance (Heusel et al. 2017, arXiv:1706.08500) through torchmetrics.

    Volumes are judged by planes, `slices` of them evenly spread along each axis: a "2.5-D" figure that sees no
    continuity across planes. Nothing is downloaded.

    Args:
        samples: `(N, C, *spatial)` in [0, 1], C = 1 or 3.
        data: the same.
        weights: the file of the inception network, `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.
        slices: planes along each axis of a volume.
        features: layer of the network: 64, 192, 768 or 2048.

    Raises:
        FileError: there is no such file, or it holds anything but tensors.
        MissingDependencyError: torch-fidelity is not installed.
        SettingError: another number of channels.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileError(
            path, "no such file", "FID needs the inception weights of torch-fidelity; nothing is downloaded"
        )
    for images in (samples, data):
        if images.shape[1] not in (1, 3):
            raise SettingError(f"fid: expected images of 1 or 3 channels, got {images.shape[1]}")
    _check_weights(path)
    require("torch_fidelity", "fid")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=features, feature_extractor_weights_path=str(path))
    for images, real in ((data, True), (samples, False)):
        for planes in cuts(images.float().cpu(), slices):
            coloured = (planes.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
            for part in coloured.split(16):
                metric.update(part, real=real)
    return float(metric.compute())


def _check_weights(path: Path) -> None:
    """Refuse a file that is more than tensors: torch-fidelity unpickles it without looking."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        raise FileError(path, "expected a state dict of the inception network, tensors alone") from error


def cuts(images: Tensor, count: int) -> Iterator[Tensor]:
    """Sets of planes `(n, C, rows, columns)` that show the images: themselves, or cuts along every axis."""
    axes = range(2, images.ndim) if images.ndim > 4 else ()
    if not axes:
        yield images
    for axis in axes:
        size = images.shape[axis]
        kept = ((torch.arange(min(count, size)) + 0.5) * size / min(count, size)).long()
        yield from cuts(images.index_select(axis, kept).movedim(axis, 1).flatten(0, 1), count)


def _patches(images: Tensor, places: Tensor, size: list[int]) -> Tensor:
    """Patches at `places` `(P, 1 + ndim)` in [0, 1): which image, then where; `(P, voxels, C)`."""
    shape = images.shape[2:]
    which = (places[:, 0] * len(images)).long().to(images.device)
    inside = torch.stack(torch.meshgrid(*[torch.arange(extent) for extent in size], indexing="ij"), dim=-1)
    index = torch.zeros((len(places), inside[..., 0].numel()), dtype=torch.int64)
    for axis, extent in enumerate(shape):
        start = (places[:, 1 + axis] * (extent - size[axis] + 1)).long()
        index = index * extent + start[:, None] + inside[..., axis].flatten()
    voxels = images.flatten(2).movedim(1, 2)
    return voxels[which[:, None], index.to(images.device)]


def _blur(images: Tensor, axis: int, gain: float = 1.0) -> Tensor:
    lines = images.movedim(axis, -1)
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype, device=images.device) * (gain / 16)
    rows = lines.reshape(-1, 1, lines.shape[-1])
    return F.conv1d(F.pad(rows, (2, 2), mode="reflect"), kernel[None, None]).reshape(lines.shape).movedim(-1, axis)


def _widen(images: Tensor, axis: int, size: int) -> Tensor:
    """Twice as long along one axis: zeros between, then the blur that fills them."""
    spread = images.new_zeros([*images.shape[:axis], size, *images.shape[axis + 1 :]])
    spread.index_copy_(axis, torch.arange(0, size, 2).to(images.device), images)
    return _blur(spread, axis, gain=2.0)

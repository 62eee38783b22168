"""Samples to a batch, whatever their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.data.patches import crop
from voxelry.data.sample import Batch, Sample

__all__ = ["collate"]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; smaller ones are padded to the largest size along each axis.

    The padding lies behind the last plane, row and column, so indices keep their meaning; it repeats the image's
    border, and is 0 in labels and masks.

    Raises:
        DataError: ranks, channel or landmark counts differ; the message names both cases.
    """
    first = samples[0]
    for sample in samples:
        _check_alike(sample, first)
    size = np.max([sample.space.shape for sample in samples], axis=0).tolist()
    samples = [_padded(sample, size) for sample in samples]
    return Batch(
        image=torch.stack([sample.image for sample in samples]),
        spaces=[sample.space for sample in samples],
        names=[sample.name for sample in samples],
        sources=[sample.source for sample in samples],
        landmarks=_stack([sample.landmarks for sample in samples]),
        landmark_names=first.landmark_names,
        labels=_stack([sample.labels for sample in samples]),
        masks=_stack([sample.masks for sample in samples]),
        boxes=_listed([sample.boxes for sample in samples]),
        classes=_listed([sample.classes for sample in samples]),
        ids=[sample.ids for sample in samples],
        target=_stack([sample.target for sample in samples]),
        present=_presence(samples),
        context=_stack([sample.context for sample in samples]),
        borders=_stack([sample.borders for sample in samples]),
        levels=_stack([sample.levels for sample in samples]),
    )


def _check_alike(sample: Sample, first: Sample) -> None:
    """Refuse what no padding brings into one batch."""
    if sample.ndim != first.ndim:
        raise DataError(
            f"{sample.name}: an image of rank {sample.ndim} can't share a batch with {first.name} of rank {first.ndim}"
        )
    if len(sample.image) != len(first.image):
        raise DataError(
            f"{sample.name}: {len(sample.image)} channels can't share a batch with {first.name}, which has "
            f"{len(first.image)} (of grey and coloured images, set data.preprocess.channels=1)"
        )
    if _count(sample.target) != _count(first.target):
        raise DataError(
            f"{sample.name}: a target of {_count(sample.target)} channels can't share a batch with "
            f"{first.name}, whose target has {_count(first.target)}"
        )
    if _count(sample.landmarks) != _count(first.landmarks):
        raise DataError(
            f"{sample.name}: {_count(sample.landmarks)} landmarks, but {first.name} has {_count(first.landmarks)}"
        )


def _padded(sample: Sample, size: Sequence[int]) -> Sample:
    if list(sample.space.shape) == list(size):
        return sample
    if sample.landmarks is not None:  # one that lies beyond the image isn't in it because of the padding
        inside = torch.from_numpy(sample.space.contains(sample.landmarks.numpy()))
        sample = sample.replace(landmarks=torch.where(inside[:, None], sample.landmarks, torch.nan))
    return crop(sample, [0] * sample.ndim, size, fill="edge")


def _count(rows: Tensor | None) -> int:
    return 0 if rows is None else len(rows)


def _presence(samples: Sequence[Sample]) -> Tensor | None:
    """`(B, C)`: a sample that doesn't say so has all of its channels."""
    if all(sample.present is None for sample in samples):
        return None
    whole = torch.ones(len(samples[0].image), dtype=torch.bool)
    return torch.stack([whole if sample.present is None else sample.present for sample in samples])


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None


def _listed(tensors: Sequence[Tensor | None]) -> list[Tensor] | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return present if len(present) == len(tensors) else None

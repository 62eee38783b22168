"""The first section of a report of a planned training: the plan, and a picture of the data that it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.fingerprint.record import CaseFacts
from voxelry.data.fingerprint.take import take_fingerprint
from voxelry.data.parts import Splits
from voxelry.data.sample import Sample
from voxelry.engine.plan_file import Decision
from voxelry.viz import charts, montage
from voxelry.viz.report import Report

__all__ = ["add_plan"]

_SHOWN = 8  # cases of the contact sheet
_VOXELS = 1 << 20  # of one of its images
_SMALL = 0.1  # mm, below which spacings are told in µm


def add_plan(report: Report, plan: Sequence[Decision], splits: Splits) -> None:
    """The section "Plan and data": table, contact sheet, spacings and sizes.

    Args:
        plan: with the values that the training had.
        splits: its data.
    """
    report.section("Plan and data")
    report.table([{"setting": one.setting, "value": str(one.value), "why": one.why} for one in plan])
    _add_sheet(report, splits)
    _add_sizes(report, _headers(splits))


def _add_sheet(report: Report, splits: Splits) -> None:
    """Some training cases as the network sees them, but for windows and augmentation."""
    count = len(splits.train)
    places = sorted({int(step) for step in np.linspace(0, count - 1, min(count, _SHOWN))})
    samples = [splits.unaltered(place) for place in places]
    if not all(isinstance(sample, Sample) for sample in samples):
        return  # what isn't learned from as images, such as prompts of several slices, has pictures of its own
    batch = collate([sample.replace(landmarks=None, boxes=None, masks=None, labels=None) for sample in samples])
    images, steps = _thinned(batch.image)
    spacing = np.array(samples[0].space.spacing) * steps
    report.figure(
        montage.sheet(list(images), titles=batch.names, space=Space.from_spacing(images.shape[2:], spacing.tolist())),
        f"{len(samples)} of {count} training cases after preprocessing, filled up to one size; their middle planes",
    )


def _thinned(images: Tensor) -> tuple[Tensor, list[int]]:
    """`(B, 1, *spatial)`, the mean of the channels, every so many voxels, and these numbers."""
    shape = images.shape[2:]
    step = max(1, ceil((prod(shape) / _VOXELS) ** (1 / len(shape))))
    steps = [min(step, max(1, size // 32)) for size in shape]
    images = images.mean(dim=1, keepdim=True)
    for axis, one in enumerate(steps, start=2):
        images = images.index_select(axis, torch.arange(0, images.shape[axis], one))
    return images, steps


def _headers(splits: Splits) -> list[CaseFacts]:
    """The headers of all cases; none of samples that aren't made of whole images."""
    parts = [getattr(part, "volumes", part) for part in (splits.train, splits.validation, splits.test)]
    cases = [case for part in parts for case in getattr(part, "cases", ())]
    return take_fingerprint(cases, Path(), sampled=False).readable


def _add_sizes(report: Report, cases: Sequence[CaseFacts]) -> None:
    """Histograms of spacings and sizes along each axis of the files."""
    cases = [case for case in cases if len(case.shape) == len(cases[0].shape)]
    if not cases:
        return
    names = ("plane", "row", "column")[-len(cases[0].shape) :]
    spacings = np.array([case.space.spacing for case in cases])
    shapes = np.array([case.shape for case in cases])
    scale, unit = (1000, "µm") if spacings.max() < _SMALL else (1, "mm")
    panels = {
        f"spacing ({unit})": {name: scale * spacings[:, axis] for axis, name in enumerate(names)},
        "size (voxels)": {name: shapes[:, axis] for axis, name in enumerate(names)},
    }
    report.figure(charts.histograms(panels, ylabel="cases"), f"Spacings and sizes of {len(cases)} files, by axis")

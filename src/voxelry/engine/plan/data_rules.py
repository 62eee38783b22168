"""Decisions about what the data are brought to, and what is done to few of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from voxelry.core.settings import plain
from voxelry.data.fingerprint.record import UNKNOWN
from voxelry.data.preprocess.modality import CT_WINDOWS
from voxelry.engine.configs import groups
from voxelry.engine.plan.situation import Situation, length, listed
from voxelry.engine.plan_file import Decision

__all__ = ["augmentation", "heatmaps", "intensities", "split", "working_spacing"]

_STRAY = 0.1  # of the images: so few that don't look like CT aren't asked about the scale of all
_ALIKE = 0.01  # relative: spacings so far apart are one
_FEW, _VERY_FEW = 20, 10  # groups of cases
_FOLDS = 5
_TURNED = 10.0  # degrees: an augmentation that turns no further is for images that are to stay as they are
_SIGMA, _SIGMA_VOXELS = 3.0, (1.5, 4.0)  # mm, and voxels that it is kept between
_OBJECTS_ACROSS = 2  # large objects that a window shall hold side by side
_OBJECT_VOXELS = 8  # voxels across that small ones shall keep
_COARSER = 1.25  # times: less isn't worth an interpolation
_ELASTIC_VOXELS, _ELASTIC_SPACING_VOXELS = 3.0, 32.0


def working_spacing(situation: Situation) -> Iterator[Decision]:
    """The spacing that every image is brought to, so that others than the training cases' are seen as these are."""
    setting, data = "data.preprocess.spacing", situation.config.data
    restored = data.get("degrade") is not None or data.get("pairs") is not None  # interpolation would blur the truth
    if not situation.is_open(setting) or restored or data.get("slices") is not None:
        return
    if data.preprocess.image_size is not None:
        yield Decision(setting, None, "images are resized to data.preprocess.image_size")
        return
    coarse = _for_objects(situation)
    if coarse is not None:
        yield coarse
        return
    placed = sum(case.placed for case in situation.cases)
    if placed < len(situation.cases):
        few = "the images don't" if not placed else f"{len(situation.cases) - placed} of the images don't"
        yield Decision(setting, None, f"{few} say how large their voxels are")
        return
    spacings = np.array([grid.spacing for grid in situation.grids])
    median = np.median(spacings, axis=0)
    apart = float(np.abs(spacings / median - 1).max())
    if apart <= _ALIKE and OmegaConf.select(situation.config, "task.voxel_size") == "auto":
        yield Decision(setting, None, "all images have one; task.voxel_size=auto brings others to it")
        return
    low, high = spacings.min(), spacings.max()
    why = (
        "that of all images" if apart <= _ALIKE else f"median of the images', which are {length(low)} to {length(high)}"
    )
    digits = 6 if apart <= _ALIKE else 3
    yield Decision(setting, [float(f"{step:.{digits}g}") for step in median], why)


def _for_objects(situation: Situation) -> Decision | None:
    """A coarser spacing, where the windows of a detector would hold less than two of its large objects side by side.

    Axes that are as coarse already stay as they are, and small objects keep some voxels.
    """
    patches, objects = situation.config.data.get("patches"), situation.data.object_sizes()
    if situation.recipe.required != "instances" or not isinstance(patches, DictConfig) or not len(objects):
        return None
    small, large = np.percentile(objects, (10, 95))
    window = np.broadcast_to(plain(patches.size), situation.config.ndim)
    edge = float(np.prod(window, dtype=float) ** (1 / len(window)))
    step = min(_OBJECTS_ACROSS * large / edge, small / _OBJECT_VOXELS)
    if step <= _COARSER * situation.voxel:
        return None
    found = [float(f"{max(own, step):.3g}") for own in situation.spacing]
    told = length(large) if all(case.placed for case in situation.cases) else f"{large:.3g} voxels"
    return Decision("data.preprocess.spacing", found, f"so that windows of {listed(window)} hold objects of {told}")


def intensities(situation: Situation) -> Iterator[Decision]:
    """What becomes 0 and 1, by the modality."""
    setting, modality = "data.preprocess.normalise", situation.data.modality
    if not situation.is_open(setting):
        return
    others = situation.data.unlike_ct
    if modality == "ct" and len(others) <= _STRAY * len(situation.data.sampled):
        window = list(CT_WINDOWS["default"])
        yield Decision(setting, "window", "CT: a value means the same in every image")
        if situation.is_open("data.preprocess.window"):
            yield Decision("data.preprocess.window", window, "Hounsfield units from air to dense bone")
        return
    told = "modality unknown" if modality == UNKNOWN else f"{modality}, but not all" if others else modality
    yield Decision(setting, "percentile", f"{told}: values have no scale of their own, single bright ones don't count")


def split(situation: Situation) -> Iterator[Decision]:
    """Of few cases folds, so that each is measured in some run."""
    count, data = situation.data.groups, situation.config.data
    named = any(case.split for case in situation.data.cases)
    if named or not situation.is_open("data.split.folds") or data.split.fractions is not None or data.split.file:
        return
    if count == 1:
        if situation.is_open("data.split.fractions"):
            yield Decision("data.split.fractions", [1.0, 0.0, 0.0], "a single case: nothing is left to validate with")
    elif count < _FEW:
        folds = min(_FOLDS, count)
        every = ",".join(map(str, range(folds)))
        why = f"{count} cases: of these one part validates; --multirun data.split.fold={every} measures all"
        yield Decision("data.split.folds", folds, why)


def augmentation(situation: Situation) -> Iterator[Decision]:
    """Stronger changes for very few cases, in voxels' measure."""
    augment, count = situation.config.get("augment") or {}, situation.training_cases
    if count > _VERY_FEW or augment.get("rotation", 0.0) < _TURNED:
        return
    strong: dict[str, Any] = yaml.safe_load(groups()["augment"]["strong"].read_text(encoding="utf-8"))
    own = {name: value for name, value in strong.items() if name != "defaults"}
    voxels = situation.voxel
    own["elastic"] = float(f"{min(own['elastic'], _ELASTIC_VOXELS * voxels):.3g}")
    own["elastic_spacing"] = float(f"{min(augment['elastic_spacing'], _ELASTIC_SPACING_VOXELS * voxels):.3g}")
    for name, value in own.items():
        if situation.is_open(f"augment.{name}"):
            yield Decision(
                f"augment.{name}", value, f"{count} case{'s' * (count > 1)} to learn from: as augment=strong"
            )


def heatmaps(situation: Situation) -> Iterator[Decision]:
    """The width of heatmaps, where a task has them, in sight of the voxels."""
    setting, task = "task.sigma", situation.config.task
    if not situation.is_open(setting) or task.get("sigma_unit") != "mm":
        return
    low, high = (voxels * situation.voxel for voxels in _SIGMA_VOXELS)
    value = float(f"{np.clip(_SIGMA, low, high):.3g}")
    kept = f"{_SIGMA_VOXELS[0]:g} to {_SIGMA_VOXELS[1]:g} voxels"
    yield Decision(setting, value, f"mm: {_SIGMA:g}, but {kept} of {length(situation.voxel)}")

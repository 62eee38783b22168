"""A scan brought into the frame of a template: rigid or affine, by mutual information (SimpleITK).

Both images are first seen on coarse grids along the world's axes, so that oblique, mirrored, sheared and anisotropic
ones are alike. The transform is one of the world, `(4, 4)`: where a point of the patient, in RAS mm, lies in the frame
of the template. It moves whatever has a place in the world, and its inverse brings it back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.atomic import replacing
from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.preprocess import move
from voxelry.data.preprocess.frame import world_aligned
from voxelry.data.preprocess.normalise import finite
from voxelry.data.sample import Sample

__all__ = ["KINDS", "register", "write_transform"]

KINDS = ("rigid", "affine")

_VOXELS = 96  # along the longest side of what is compared
_BINS = 32  # of the mutual information (Mattes et al. 2003, IEEE TMI 22(1), 120-128)
_LEAST = 0.25  # share of the template that the scan must reach

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def register(scan: Sample, template: Sample, transform: str = "rigid") -> NDArray[np.float64]:
    """The transform `(4, 4)` of the world that brings a scan onto a template, both of rank 3 and of one channel.

    Raises:
        DataError: they can't be brought together; names both.
    """
    import SimpleITK as sitk

    fixed, moving = (_coarse(one, sitk) for one in (template, scan))
    try:
        start = _best_start(fixed, moving, sitk)
        found = _optimised(fixed, moving, start, sitk)
        if transform == "affine":
            affine = sitk.AffineTransform(3)
            affine.SetMatrix(found.GetMatrix())
            affine.SetTranslation(found.GetTranslation())
            affine.SetCenter(found.GetCenter())
            found = _optimised(fixed, moving, affine, sitk)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{scan.source}: can't be registered to {template.source}: {reason}") from error
    motion = np.asarray(np.linalg.inv(_matrix(found)), dtype=np.float64)
    if _reach(scan.space, template.space, motion) < _LEAST:
        raise DataError(
            f"{scan.source}: registered to {template.source} it reaches less than a quarter of it; expected scans of "
            "one part of the body"
        )
    return motion


def write_transform(path: Path, motion: NDArray[np.float64]) -> Path:
    """The transform as ITK has it, in LPS and from points of the template to those of the patient, as Slicer reads it.

    Args:
        path: with the suffix `.tfm`.
        motion: what `register` gave.
    """
    inverse = _TO_LPS @ np.linalg.inv(motion) @ _TO_LPS
    numbers = " ".join(f"{value:.17g}" for value in (*inverse[:3, :3].ravel(), *inverse[:3, 3]))
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3"]
    lines += [f"Parameters: {numbers}", "FixedParameters: 0 0 0"]
    with replacing(path) as place:
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _coarse(sample: Sample, sitk: Any) -> Any:
    """An image on a grid along the world's axes, as ITK sees it."""
    box = world_aligned(sample.space)
    step = max(*sample.space.spacing, max(box.extent) / _VOXELS)
    step = min(step, 2 * max(box.extent) / _VOXELS, max(box.extent) / 16)
    target = box.respace(step)
    plain = Sample(finite(sample.image.to(torch.float32)), sample.space, sample.name)
    pixels = move(plain, target).image[0].numpy()
    image = sitk.GetImageFromArray(pixels - pixels.min())
    affine = _TO_LPS @ target.affine[:, [2, 1, 0, 3]]
    image.SetSpacing(tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()))
    image.SetOrigin(tuple(affine[:3, 3].tolist()))
    image.SetDirection(tuple((affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).ravel().tolist()))
    return image


def _best_start(fixed: Any, moving: Any, sitk: Any) -> Any:
    """Middle upon middle or mass upon mass, whichever agrees better."""
    starts = [
        sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), mode)
        for mode in (sitk.CenteredTransformInitializerFilter.GEOMETRY, sitk.CenteredTransformInitializerFilter.MOMENTS)
    ]
    starts = [sitk.Euler3DTransform(start) for start in starts]
    method = _method(sitk)
    values = []
    for start in starts:
        method.SetInitialTransform(start, inPlace=False)
        values.append(method.MetricEvaluate(fixed, moving))
    return starts[int(np.argmin(values))]


def _method(sitk: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_BINS)
    method.SetMetricSamplingStrategy(method.NONE)  # all voxels: the same every time
    method.SetNumberOfThreads(1)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimised(fixed: Any, moving: Any, start: Any, sitk: Any) -> Any:
    method = _method(sitk)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-4, numberOfIterations=200, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _matrix(transform: Any) -> NDArray[np.float64]:
    """Points of the template to points of the scan, `(4, 4)` in RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.asarray(transform.GetCenter())
    matrix[:3, 3] = centre + np.asarray(transform.GetTranslation()) - matrix[:3, :3] @ centre
    return np.asarray(_TO_LPS @ matrix @ _TO_LPS, dtype=np.float64)


def _reach(scan: Space, template: Space, motion: NDArray[np.float64]) -> float:
    """Share of the template's grid that the scan covers after the motion, by a lattice of places."""
    places = np.stack(np.meshgrid(*[np.linspace(0, size - 1, 12) for size in template.shape], indexing="ij"), axis=-1)
    world = np.asarray(template.to_world(places.reshape(-1, 3)))
    back = np.linalg.inv(motion)
    return float(scan.contains(np.asarray(scan.to_index(world @ back[:3, :3].T + back[:3, 3]))).mean())

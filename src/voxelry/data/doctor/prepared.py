"""What is wrong with the slices, distances and meshes of a folder that `prepare` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from voxelry.core.errors import VoxelryError
from voxelry.data.doctor.diagnosis import Diagnosis
from voxelry.data.layouts.prepared import read_manifest
from voxelry.data.prepare.files import read_sdf, read_slice_file
from voxelry.data.slices.cut import SliceSample
from voxelry.data.slices.pointmaps import masked_pointmap

__all__ = ["inspect_prepared", "slice_faults"]

TOLERANCE = 0.01  # of a pixel: positions are float32
AGAIN = "run voxelry prepare again"


def inspect_prepared(found: Diagnosis, root: Path) -> None:
    """Read every slice, the distances of every class, and look for the meshes; faults are errors of the diagnosis.

    Volumes and labels are looked at as those of every folder, see `inspect`.
    """
    manifest = read_manifest(root)
    for case in manifest["cases"]:
        for record in case["slices"]:
            for fault in slice_faults(root / record["file"], int(record["label"])):
                found.add("error", root / record["file"], f"{fault}; {AGAIN}")
        for file in (case["meshes"] or {}).values():
            if not (root / file).is_file():
                found.add("error", root / file, f"no such mesh; {AGAIN}")
        _inspect_distances(found, root / case["sdf"], case)
    found.sort()


def _inspect_distances(found: Diagnosis, path: Path, case: Mapping[str, Any]) -> None:
    try:
        for label in sorted({int(one) for one in case["volumes_ml"]} - {int(one) for one in case["absent"]}):
            if read_sdf(path, label) is None:
                found.add("error", path, f"no distances of class {label}; {AGAIN}")
    except VoxelryError as error:
        found.add("error", path, str(error).removeprefix(f"{path}: "))


def slice_faults(path: Path, label: int) -> Iterator[str]:
    """What is wrong with one slice, a line each.

    Args:
        path: its file.
        label: the class that it was cut for.
    """
    try:
        sample = read_slice_file(path)
    except (VoxelryError, ValueError, IndexError) as error:
        yield str(error).removeprefix(f"{path}: ")
        return
    shape, mask, points = sample.image.shape[1:], sample.mask, sample.pointmap
    assert mask is not None
    assert points is not None
    if sample.label != label:
        yield f"is of class {sample.label}, expected {label}"
    if not bool(torch.isfinite(sample.image).all()):
        yield "its image has pixels that are no numbers"
    if mask.shape != shape or points.shape != (3, *shape):
        sizes = ", ".join(str(tuple(each.shape)) for each in (sample.image, mask, points))
        yield f"image, mask and pointmap: expected one size, got {sizes}"
        return
    if not bool(mask.any()):
        yield "its mask is empty"
    yield from _point_faults(sample, mask, points)


def _point_faults(sample: SliceSample, mask: torch.Tensor, points: torch.Tensor) -> Iterator[str]:
    known = torch.isfinite(points).all(dim=0)
    if not torch.equal(known, mask):
        yield "its pointmap: expected numbers within the mask and NaN elsewhere"
        return
    away = (points - masked_pointmap(sample.space, mask))[:, mask].norm(dim=0)
    if len(away) and float(away.max()) > TOLERANCE * min(sample.space.spacing):
        yield f"its pointmap lies up to {float(away.max()):.3g} mm beside the slice"

"""A run done again from its manifest, and compared with what it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from voxelry.core.errors import CheckpointError
from voxelry.engine.manifest import differences, read_manifest
from voxelry.engine.train import train

__all__ = ["Rerun", "compare_runs", "rerun"]


@dataclass(frozen=True)
class Rerun:
    """How a run that was done again compares with the first.

    Attributes:
        folder: of the second one.
        same: whether all weights are equal, bit for bit.
        lines: what is different, first of what went in, then of what came out.
    """

    folder: Path
    same: bool
    lines: tuple[str, ...]


def rerun(run: Path, out: Path | None = None) -> Rerun:
    """Train once more with the settings of a run's manifest, in another folder.

    Args:
        run: the folder of a finished run.
        out: where to; by default beside it, `NAME_again`.

    Raises:
        FileError: no manifest there.
        CheckpointError: no bundle there to compare with, or the second run was interrupted.
        VoxelryError: as a training.
    """
    before, out = read_manifest(run), run.with_name(f"{run.name}_again") if out is None else out
    _weights(run)
    kept: dict[str, Any] = {"output_dir": str(out), "plan": None, "resume": False}
    again = train(OmegaConf.create({**before["settings"], **kept}))
    if again.bundle is None:
        raise CheckpointError(f"{out}: interrupted; resume=true goes on with it by `voxelry train`")
    return compare_runs(run, out)


def compare_runs(run: Path, other: Path) -> Rerun:
    """What is different between two finished runs.

    Raises:
        FileError: one without a manifest.
        CheckpointError: one without a bundle.
    """
    results = list(_results(load_file(_weights(run)), load_file(_weights(other))))
    lines = [*differences(read_manifest(run), read_manifest(other)), *results, *_metrics(run, other)]
    return Rerun(other, not results, tuple(lines))


def _weights(run: Path) -> Path:
    path = run / "bundle" / "weights.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{run}: holds no bundle to compare with; the run has not ended, or made an adapter")
    return path


def _results(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> Iterator[str]:
    if first.keys() != second.keys():
        yield "weights: another network"
        return
    changed = [name for name, value in first.items() if value.numpy().tobytes() != second[name].numpy().tobytes()]
    if changed:
        largest = max(float((first[name].double() - second[name].double()).abs().max()) for name in changed)
        yield f"weights: {len(changed)} of {len(first)} tensors differ, by up to {largest:.3g}"


def _metrics(run: Path, out: Path) -> Iterator[str]:
    first, second = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for path in (folder / "summary.json" for folder in (run, out))
    )
    for name in sorted({*first, *second}):
        was, now = first.get(name), second.get(name)
        numbers = isinstance(was, float) and isinstance(now, float)
        if was != now and not (numbers and math.isclose(was, now, rel_tol=1e-12)):
            yield f"{name}: was {was}, is {now}"

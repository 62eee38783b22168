"""Checkpoints of other projects as bundles that predict and can be trained further."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.card import model_card
from voxelry.core.choice import check_choice
from voxelry.core.settings import keywords
from voxelry.data.preprocess import Preprocess
from voxelry.engine.compose import compose_training
from voxelry.interop import sam3d
from voxelry.interop.sam3d_organ import organ_network
from voxelry.tasks.reconstruct import ReconstructTwoStageTask

__all__ = ["PROJECTS", "READERS", "import_weights", "reader_settings"]

PROJECTS = ("sam3d",)
READERS = ("shape_tiny", "shape_small", "shape_base")
"""Configurations of what reads prompts; that of `model=sam3d` is `shape_small`."""


def import_weights(
    project: str,
    folder: Path,
    out: Path,
    *,
    organ: int = 1,
    edge: float = 100.0,
    include_pose: bool = False,
    reader: str = "shape_small",
) -> list[str]:
    """Write a bundle with a checkpoint's weights.

    Args:
        project: one of `PROJECTS`.
        folder: of the checkpoint.
        out: the bundle's.
        organ: label value that it is for.
        edge: of its frame, mm: about twice the organ's extent.
        include_pose: whether the pose's latents and their parameters are kept.
        reader: one of `READERS`, the new network that reads prompts.

    Returns:
        A line for each module, with its parameters and the layout of its sparse kernels.

    Raises:
        SettingError: an unknown project or reader.
        CheckpointError: as `interop.sam3d.load` and `interop.sam3d_organ.organ_network`.
        FileError: a folder can't be read or written.
    """
    check_choice("from", project, PROJECTS)
    settings = reader_settings(reader)
    checkpoint = sam3d.load(folder, include_pose=include_pose)
    network = organ_network(checkpoint, **settings)
    task = ReconstructTwoStageTask(network, organs=[organ], edges=[edge], contour=0.0, samples=1)
    record: dict[str, Any] = {
        "data": {"root": str(folder), "train": [], "validation": [], "test": []},
        "metrics": {"on": "no"},
    }
    preprocess = Preprocess(normalise="percentile", align="auto")
    write_bundle(out, task, preprocess, record=record, card=model_card(task, record, {}))
    return [_line(name, module) for name, module in checkpoint.modules.items()]


def reader_settings(name: str) -> dict[str, Any]:
    """Settings of a network that reads prompts, but for the grid of its answer, which the checkpoint's decoder gives.

    Raises:
        SettingError: none of `READERS`.
    """
    check_choice("reader", name, READERS)
    own = keywords(compose_training(["experiment=reconstruct_3d", f"model={name}", "data.root=."]).model)
    return {key: value for key, value in own.items() if key != "grid"}


def _line(name: str, module: sam3d.Module) -> str:
    count = sum(parameter.numel() for parameter in module.network.parameters())
    parts: Sequence[str] = [f"{count / 1e6:.1f} million parameters"]
    if module.layout:
        parts = [*parts, f"sparse kernels {module.layout}"]
    return f"{name}: {', '.join(parts)}"

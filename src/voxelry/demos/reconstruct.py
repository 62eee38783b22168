"""The demo of the reconstruction task: an organ of phantoms, a short training, unseen phantoms and one click each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxelry.bundle.model import load
from voxelry.core.errors import SettingError
from voxelry.demos.steps import make_phantoms, run_training
from voxelry.engine.predict import predict_files
from voxelry.engine.report import demo_page, evaluation_dataset
from voxelry.io import read_image
from voxelry.phantoms import LABEL_NAMES
from voxelry.viz.report import Report

__all__ = ["reconstruct_demo"]

LABELLED, UNSEEN = 24, 6
ORGAN = "liver"
_AXES = ("x", "y", "z")


def reconstruct_demo(out: Path, *, ndim: int = 3, minutes: float = 1.8, size: int = 48) -> Report:
    """Train on phantoms and reconstruct an organ of new ones; see `demo.run_demo`.

    Args:
        out: the demo's folder.
        ndim: 3; a shape has no other rank.
        minutes: wall-clock limit of the training.
        size: voxels along the phantoms' axes.

    Raises:
        SettingError: another rank.
    """
    shape = (size,) * ndim
    if len(shape) < len(_AXES):
        raise SettingError(f"ndim: a shape has rank {len(_AXES)}, got {ndim}")
    for name, count, seed in (("labelled", LABELLED, 0), ("unseen", UNSEEN, 2000)):
        make_phantoms(out / name, count, seed=seed, shape=shape, format=".nii.gz", kind="torso")
    label = LABEL_NAMES.index(ORGAN)
    run_training(
        [
            "experiment=reconstruct_3d",
            f"data.root={out}/labelled",
            "data.split.fractions=[0.85,0.15,0.0]",
            f"data.slices.organs=[{label}]",
            "model.grid=32",
            "model.image_size=48",
            f"output_dir={out}/reconstruct",
            f"trainer.max_minutes={minutes}",
            "trainer.max_steps=2000",
            "trainer.validate_every=200",
            "trainer.log_every=5",
            "task.curriculum_batches=60",
        ]
    )
    model = load(out / "reconstruct" / "bundle")
    for image in sorted((out / "unseen" / "volumes").iterdir())[:2]:
        labels = read_image(out / "unseen" / "labels" / image.name)
        inside = np.argwhere(np.asarray(labels.array)[0] == label)
        x, y, z = np.asarray(labels.space.to_world(inside[len(inside) // 2].astype(np.float64)))
        print(f"$ voxelry predict --model {out}/reconstruct {image} --click {x:.1f},{y:.1f},{z:.1f} --out {out}/meshes")
        predict_files(model, [image], out / "meshes", options={"click": (x, y, z), "plane": "axial"})
    print(f"$ voxelry evaluate --model {out}/reconstruct {out}/unseen --out {out}/evaluation")
    report = Report("voxelry demo: shapes", subtitle=f"The {ORGAN} of phantoms from one click on one slice")
    return demo_page(report, out, model, evaluation_dataset(model, out / "unseen"), {"Training": out / "reconstruct"})

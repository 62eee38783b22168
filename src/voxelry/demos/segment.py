"""The demo of the segmentation task: packed nuclei, a short training, unseen nuclei."""

from __future__ import annotations

from pathlib import Path

from voxelry.demos.steps import make_phantoms, predict_folder, run_training
from voxelry.engine.report import demo_page, evaluation_dataset
from voxelry.viz.report import Report

__all__ = ["segment_demo"]

LABELLED, UNSEEN = 20, 4


def segment_demo(out: Path, *, ndim: int = 3, minutes: float = 2.0, size: int = 64) -> Report:
    """Train on nuclei phantoms and show what is found in new ones; see `demo.run_demo`."""
    shape = (size,) * ndim
    # case k of a folder has seed + k, so seeds far apart share no phantom
    for name, count, seed in (("labelled", LABELLED, 0), ("unseen", UNSEEN, 2000)):
        make_phantoms(out / name, count, seed=seed, shape=shape, format=".ome.tif", kind="nuclei")
    run_training(
        [
            f"experiment=segment_{ndim}d",
            f"data.root={out}/labelled",
            "data.split.fractions=[0.9,0.1,0.0]",
            "data.patches.size=48",
            f"task.tile_size={size}",
            "augment.flip=0.5",
            "augment.elastic=0",
            f"output_dir={out}/segment",
            f"trainer.max_minutes={minutes}",
            "trainer.max_steps=2000",
            "trainer.validate_every=250",
            "trainer.log_every=5",
            "optimizer.lr=2e-3",
        ]
    )
    model = predict_folder(out / "segment", out / "unseen", out / "predictions")
    print(f"$ voxelry evaluate --model {out}/segment {out}/unseen --out {out}/evaluation")
    report = Report("voxelry demo: instances", subtitle="Nuclei phantoms, a short training, unseen phantoms")
    return demo_page(report, out, model, evaluation_dataset(model, out / "unseen"), {"Training": out / "segment"})

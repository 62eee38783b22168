"""The demo of the translation task: phantoms made worse, a short training, unseen phantoms restored."""

from __future__ import annotations

from pathlib import Path

from voxelry.demos.steps import make_phantoms, predict_folder, run_training
from voxelry.engine.report import demo_page, evaluation_dataset
from voxelry.viz.report import Report

__all__ = ["translate_demo"]

GOOD, UNSEEN = 20, 4


def translate_demo(out: Path, *, ndim: int = 3, minutes: float = 1.8, size: int = 40) -> Report:
    """Learn to undo a scanner's faults on phantoms and show what becomes of new ones; see `demo.run_demo`.

    Args:
        out: the demo's folder.
        ndim: rank of the phantoms.
        minutes: wall-clock limit of the training.
        size: voxels along the phantoms' axes.
    """
    shape = (size,) * ndim
    # case k of a folder has seed + k, so seeds far apart share no phantom
    for name, count, seed in (("good", GOOD, 0), ("unseen", UNSEEN, 2000)):
        make_phantoms(out / name, count, seed=seed, shape=shape, format=".nii.gz", kind="torso")
    run_training(
        [
            f"experiment=translate_{ndim}d",
            f"data.root={out}/good",
            "data.split.fractions=[0.8,0.2,0.0]",
            "model.width=16",
            f"output_dir={out}/translate",
            f"trainer.max_minutes={minutes}",
            "trainer.max_steps=1500",
            "trainer.validate_every=250",
            "trainer.log_every=5",
            "optimizer.lr=1e-3",
        ]
    )
    model = predict_folder(out / "translate", out / "unseen", out / "predictions")
    print(f"$ voxelry evaluate --model {out}/translate {out}/unseen --out {out}/evaluation")
    report = Report("voxelry demo: restoration", subtitle="Phantoms with coarse planes and noise, a short training")
    return demo_page(report, out, model, evaluation_dataset(model, out / "unseen"), {"Training": out / "translate"})

"""The main job on built-in phantoms: pretrain, fine-tune on few labels, predict unseen images, report.

Every step is the command that a user would run; the demo prints it before it does it.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from voxelry.core.errors import FileError
from voxelry.data.phantoms import write_phantoms
from voxelry.engine.compose import compose_training
from voxelry.engine.model import load
from voxelry.engine.predict import gather_inputs, predict_files
from voxelry.engine.report import demo_report
from voxelry.engine.train import train
from voxelry.engine.writers import writer_for

__all__ = ["run_demo"]

UNLABELLED, LABELLED, UNSEEN = 24, 12, 6
_MARKER = ".voxelry-demo"


def run_demo(out: Path, *, ndim: int = 3, minutes: tuple[float, float] = (0.9, 1.4), size: int = 48) -> Path:
    """Run the demo in `out`, which is emptied first if an earlier demo made it.

    Args:
        out: folder for data, models, predictions and the report.
        ndim: rank of the phantoms.
        minutes: wall-clock limits of pretraining and fine-tuning.
        size: voxels along the phantoms' axes.

    Returns:
        The report.

    Raises:
        FileError: `out` holds something else, or can't be written.
    """
    started = time.monotonic()
    _clear(out)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    shape = (size,) * ndim
    suffix = ".nii.gz" if ndim == 3 else ".png"
    # case k of a folder has seed + k, so seeds far apart share no phantom
    data = {"unlabelled": (UNLABELLED, 0), "labelled": (LABELLED, 1000), "unseen": (UNSEEN, 2000)}
    for name, (count, seed) in data.items():
        options = f"--count {count} --seed {seed} --ndim {ndim} --size {size} --format {suffix} --landmarks csv"
        print(f"$ voxelry phantoms {out}/{name} {options}")
        write_phantoms(out / name, count, seed=seed, ndim=ndim, shape=shape, format=suffix, landmark_format="csv")

    common = [f"data.preprocess.image_size={size if ndim == 2 else 32}", "model=folded_unet", "trainer.log_every=5"]
    pretrain = [
        f"experiment=pretrain_{ndim}d",
        f"data.root={out}/unlabelled",
        f"output_dir={out}/pretrain",
        f"trainer.max_minutes={minutes[0]}",
        "trainer.max_steps=1500",
        "trainer.validate_every=250",
        "task.schedule=cosine",  # ends in pure noise however few its steps
        "task.n_timestep=200",
        "task.objective=v",  # samples of a network that has hardly begun to learn are smooth, not saturated
        "task.sample_steps=20",
        *common,
    ]
    _train(pretrain)
    landmarks = [
        f"experiment=landmarks_{ndim}d",
        f"data.root={out}/labelled",
        "data.split.fractions=[0.67,0.33,0.0]",
        f"output_dir={out}/landmarks",
        f"pretrained={out}/pretrain",
        f"trainer.max_minutes={minutes[1]}",
        "trainer.max_steps=1500",
        "trainer.validate_every=150",
        *common,
    ]
    _train(landmarks)

    predictions = out / "predictions"
    print(f"$ voxelry predict --model {out}/landmarks {out}/unseen --out {predictions}")
    model = load(out / "landmarks" / "bundle")
    outcome = predict_files(
        model, gather_inputs([out / "unseen"]), predictions, write=writer_for("landmarks", "mrk.json")
    )
    for path, reason in outcome.failed:
        raise FileError(path, reason)
    print(f"$ voxelry evaluate --model {out}/landmarks {out}/unseen --out {out}/evaluation")
    pretrained = load(out / "pretrain" / "bundle")
    report = demo_report(out, model, out / "unseen", pretrained, time.monotonic() - started)
    print(f"took {time.monotonic() - started:.0f} s")
    return report


def _train(overrides: list[str]) -> None:
    print("$ voxelry train " + " ".join(overrides))
    train(compose_training(overrides))


def _clear(out: Path) -> None:
    if out.exists() and not (out / _MARKER).exists() and any(out.iterdir()):
        raise FileError(out, "is not an earlier demo's folder and not empty", "give another one with --out")
    shutil.rmtree(out, ignore_errors=True)
    try:
        out.mkdir(parents=True)
        (out / _MARKER).touch()
    except OSError as error:
        raise FileError(out, f"the folder can't be made: {error.strerror or error}") from error

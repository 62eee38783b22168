"""What demos are made of: the commands that a user would run, each printed before it is done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from voxelry.bundle.model import Model, load
from voxelry.core.errors import FileError
from voxelry.engine.compose import compose_training
from voxelry.engine.predict import gather_inputs, predict_files
from voxelry.engine.train import train
from voxelry.phantoms import write_phantoms

__all__ = ["clear", "make_phantoms", "predict_folder", "run_training"]

_MARKER = ".voxelry-demo"


def clear(out: Path) -> None:
    """Make the demo's folder; one that an earlier demo made is emptied first.

    Raises:
        FileError: it holds something else, or can't be made.
    """
    if out.exists() and not (out / _MARKER).exists() and any(out.iterdir()):
        raise FileError(out, "is not an earlier demo's folder and not empty", "give another one with --out")
    shutil.rmtree(out, ignore_errors=True)
    try:
        out.mkdir(parents=True)
        (out / _MARKER).touch()
    except OSError as error:
        raise FileError(out, f"the folder can't be made: {error.strerror or error}") from error


def make_phantoms(
    folder: Path, count: int, *, seed: int, shape: Sequence[int], format: str, kind: str, landmark_format: str = "csv"
) -> None:
    """`voxelry phantoms`."""
    size = max(shape)
    options = f"--kind {kind} --count {count} --seed {seed} --ndim {len(shape)} --size {size} --format {format}"
    landmarks = f" --landmarks {landmark_format}" if kind == "torso" else ""
    print(f"$ voxelry phantoms {folder} {options}{landmarks}")
    write_phantoms(
        folder,
        count,
        seed=seed,
        ndim=len(shape),
        shape=shape,
        format=format,
        landmark_format=landmark_format,
        kind=kind,
    )


def run_training(overrides: Sequence[str]) -> None:
    """`voxelry train`."""
    print("$ voxelry train " + " ".join(overrides))
    train(compose_training(list(overrides)))


def predict_folder(run: Path, data: Path, out: Path) -> Model:
    """`voxelry predict`; answers the model.

    Raises:
        FileError: an image that could not be predicted.
    """
    print(f"$ voxelry predict --model {run} {data} --out {out}")
    model = load(run / "bundle")
    outcome = predict_files(model, gather_inputs([data]), out)
    for path, reason in outcome.failed:
        raise FileError(path, reason)
    return model

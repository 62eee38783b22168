"""What demos are made of: the commands that a user would run, each printed before it is done."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model
from voxelry.core.errors import FileError
from voxelry.engine.compose import compose_training
from voxelry.engine.inputs import gather_inputs
from voxelry.engine.predict import predict_files
from voxelry.engine.train import train
from voxelry.phantoms import write_phantoms

__all__ = ["clear", "make_phantoms", "predict", "run_training"]

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


def make_phantoms(folder: Path, count: int, *, seed: int, shape: Sequence[int], format: str, kind: str) -> None:
    """`voxelry phantoms`."""
    size = max(shape)
    options = f"--kind {kind} --count {count} --seed {seed} --ndim {len(shape)} --size {size} --format {format}"
    named = " --landmarks csv" if kind == "torso" else ""  # the format with names
    print(f"$ voxelry phantoms {folder} {options}{named}")
    write_phantoms(
        folder, count, seed=seed, ndim=len(shape), shape=shape, format=format, landmark_format="csv", kind=kind
    )


def run_training(overrides: Sequence[str]) -> None:
    """`voxelry train`, with the settings of the demo alone."""
    print("$ voxelry train " + " ".join([*overrides, "plan=null"]))
    train(compose_training(list(overrides)))


def predict(model: Model, run: Path, data: Path, out: Path, options: Mapping[str, Any] | None = None) -> None:
    """`voxelry predict`.

    Raises:
        FileError: an image that could not be predicted.
    """
    options = options or {}
    flags = "".join(f" --{name} {_typed(value)}" for name, value in options.items())
    print(f"$ voxelry predict --model {run} {data}{flags} --out {out}")
    outcome = predict_files(model, gather_inputs([data]), out, options=options)
    for path, reason in outcome.failed:
        raise FileError(path, reason)


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

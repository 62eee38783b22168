"""A training in a process of its own, looked after and ended with its job."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from voxelry.core.errors import DataError
from voxelry.serve.jobs import Progress

__all__ = ["COMMAND", "FAILED", "run_training"]

COMMAND = (sys.executable, "-m", "voxelry.serve.train_process")
LOOK = 0.3  # seconds between looks at the process
PATIENCE = 10.0  # seconds that a process has to end in when it is told to
FAILED = "voxelry: error: "


def run_training(settings: Path, minutes: float, progress: Progress) -> Path:
    """Train in a process of its own; the bundle. A cancelled job ends it.

    Args:
        settings: the configuration of the training, in YAML; the process's words go to `train.log` beside it.
        minutes: that it is to take.
        progress: told the seconds so far, those that are planned, and the last line of the log.

    Raises:
        DataError: it failed; with the line that it said.
    """
    words = settings.with_name("train.log")
    started = time.monotonic()
    with (
        words.open("wb") as log,
        subprocess.Popen([*COMMAND, str(settings)], stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while process.poll() is None:
                seconds = round(60 * minutes)
                progress(min(round(time.monotonic() - started), seconds), seconds, "training")
                _wait(process, LOOK)
        except BaseException:
            process.terminate()
            if not _wait(process, PATIENCE):
                process.kill()
            raise
    bundle = settings.with_name("bundle")
    if process.returncode or not bundle.is_dir():
        lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it ended without a word"]
        told = [line.removeprefix(FAILED) for line in lines if line.startswith(FAILED)]
        raise DataError(f"train: {(told or lines)[-1]} (all of it is in {words})")
    return bundle


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process has ended within so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True

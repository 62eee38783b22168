"""What a run leaves in its folder, and how a run that finds another one's there begins."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from voxelry.core.errors import ConfigError, FileError

__all__ = ["BEFORE", "LAST", "begin_clean", "checkpoint_to_resume"]

log = logging.getLogger("voxelry")

LAST, BEFORE = "last.ckpt", "before_last.ckpt"  # in the folder of checkpoints

# a run counts from its first checkpoint on; before, there is nothing to lose
_KEPT = ("checkpoints/*.ckpt", "bundle/config.yaml", "adapter/adapter.yaml", "summary.json")
_WRITTEN = (
    *_KEPT[:1],
    "bundle/*",
    "adapter/*",
    "metrics/*",
    "samples/step_*.png",
    "logs/metrics.csv",
    "logs/hparams.yaml",
    "logs/events.out.tfevents.*",
    "report.html",
    "plan.yaml",
    "manifest.json",
    "summary.json",
)


def checkpoint_to_resume(folder: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint that a run in this folder goes on from, or None when it begins.

    Args:
        folder: the run's.
        resume: go on with the run that is there, if there is one.
        overwrite: begin anew, whatever is there.

    Raises:
        ConfigError: a run is there and nothing was said of it; both were said; or a run that can't be gone on with,
            as its last checkpoints are missing.
    """
    if resume and overwrite:
        raise ConfigError("overwrite: expected without resume=true; a run goes on or begins anew")
    if resume and (newest := _newest_whole(folder / "checkpoints")) is not None:
        return newest
    if overwrite or not any(_files(folder, _KEPT)):
        return None
    if resume:
        raise ConfigError(
            f"{folder}: holds a run without checkpoints/last.ckpt, from which resume=true would go on; "
            "overwrite=true begins anew, output_dir=... takes another folder"
        )
    raise ConfigError(
        f"{folder}: holds an earlier run; resume=true goes on with it, overwrite=true begins anew in its place, "
        "output_dir=... takes another folder"
    )


def _newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that isn't torn, and a word where that isn't the last one; None where there is none.

    Where all are torn it is the last one, of which its reader says what is wrong.
    """
    last, before = folder / LAST, folder / BEFORE
    if last.is_file() and (_is_whole(last) or not before.is_file()):
        return last
    if not before.is_file():
        return None
    log.warning("%s %s: going on from the one before it", last, "is torn" if last.is_file() else "is missing")
    return before


def _is_whole(path: Path) -> bool:
    """Whether all of a checkpoint's bytes are those that were written, by the archive's own checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error):
        return False


def begin_clean(folder: Path) -> None:
    """Remove what an earlier run left, and nothing else, so that none of it can be taken for this run's.

    Raises:
        FileError: something can't be removed.
    """
    try:
        for file in list(_files(folder, _WRITTEN)):
            file.unlink()
    except OSError as error:
        raise FileError(error.filename or folder, f"can't be removed: {error.strerror or error}") from error
    for inner in ("bundle", "adapter", "checkpoints", "metrics", "samples", "logs"):
        if (folder / inner).is_dir() and not any((folder / inner).iterdir()):
            (folder / inner).rmdir()


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (file for pattern in patterns for file in folder.glob(pattern) if file.is_file() or file.is_symlink())

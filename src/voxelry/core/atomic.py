"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from voxelry.core.fetch import put
from voxelry.core.guard import guarded
from voxelry.core.remote import Remote, as_path

__all__ = ["final_place", "move", "replacing", "staged"]

_STAGED: ContextVar[tuple[Path, Path] | None] = ContextVar("staged", default=None)
_OWNER_ALONE = 0o600  # as tempfile and safetensors make files


@contextmanager
def replacing(path: str | Path, action: str = "can't be written") -> Iterator[Path]:
    """Give a place to write to; what was written there takes the place of `path` when the block ends well.

    The place has the same name in a hidden folder beside `path` (in the system's temporary one where `path` is an
    address), so that a header may point at a data file of the same stem; files beside it are moved too, `path` last.
    The block may write a file or a folder. If it fails or is interrupted, `path` stays as it was and nothing is left
    behind. Whatever was written may be read by whom the umask lets read new files, also where a library made its files
    for their owner alone.

    Args:
        path: file or folder that is written whole or not at all.
        action: what an error says of it.

    Raises:
        FileError: the folder can't be written, the disk is full, or anything else that fails inside.
    """
    path = as_path(path)
    with guarded(path, action):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = None if isinstance(path, Remote) else path.parent
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=beside))
        try:
            yield folder / path.name
            _open_up(folder)
            for written in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
                _give_place(written, path.parent / written.name, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged(folder: Path, final: Path) -> Iterator[None]:
    """Say that what is written into a folder will be moved into another one; `final_place` answers for it."""
    before = _STAGED.set((folder, final))
    try:
        yield
    finally:
        _STAGED.reset(before)


def final_place(path: Path) -> Path:
    """Where a file will lie once it is complete, for what it says of where others lie."""
    now = _STAGED.get()
    return now[1] / path.relative_to(now[0]) if now is not None and path.is_relative_to(now[0]) else path


def _give_place(written: Path, target: Path, aside: Path) -> None:
    if isinstance(target, Remote):
        put(written, target)
    else:
        move(written, target, aside)


def _open_up(folder: Path) -> None:
    """Give all files in a folder, at any depth, the mode that a new file has here."""
    probe = folder / ".mode"  # asking for the umask would mean to change it, for all threads
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if not file.is_symlink() and file.is_file() and stat.S_IMODE(file.stat().st_mode) == _OWNER_ALONE != mode:
            file.chmod(mode)


def move(source: Path, target: Path, aside: Path) -> None:
    """Put a file or folder in the place of whatever has that name.

    Args:
        source: what is moved, on the same disk as the others.
        target: where it goes.
        aside: a folder that takes an old folder at that place, which can't be replaced in one step.

    Raises:
        OSError: it can't be moved, or a file would replace a folder.
    """
    if target.is_dir() and not target.is_symlink():
        if not source.is_dir():
            raise IsADirectoryError(f"{target} is a folder")
        target.replace(aside / f"{target.name}.old")
    source.replace(target)

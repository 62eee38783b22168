"""Files that lie elsewhere, here for a while; and those made here, put elsewhere.

Copies lie in a folder of the process in the system's temporary folder, the least recently used of which are removed
when they are more than `VOXELRY_TEMPORARY_GB` (4), and all when the process ends. Those of a process that was killed
are removed by the next one.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from voxelry.core.errors import FileError, SettingError, VoxelryError
from voxelry.core.remote import Remote, reaching

__all__ = ["fetch", "named_as", "put", "remove"]

_PREFIX = "voxelry-copies-"
_LIMIT = "VOXELRY_TEMPORARY_GB"
_RESERVE = 1 << 28  # bytes that stay free on the disk


class _Copies:
    """The copies of one process."""

    def __init__(self) -> None:
        _sweep()
        self.process = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = FileLock(f"{self.folder}.lock")
        self._lock.acquire()
        self.folder.mkdir(exist_ok=True)  # another process may have swept it before it was locked
        self._sizes: dict[Path, int] = {}  # the least recently used first
        self._busy = threading.RLock()
        atexit.register(self.clear)

    def clear(self) -> None:
        if os.getpid() == self.process:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def get(self, path: Remote, beside: Sequence[Remote]) -> Path:
        place = self.folder / hashlib.sha256(str(path).encode()).hexdigest()[:24]
        with self._busy:
            if place not in self._sizes or not place.exists():
                self._sizes[place] = self._copy(path, beside, place)
            self._sizes[place] = self._sizes.pop(place)
        return place / path.name

    def _copy(self, path: Remote, beside: Sequence[Remote], place: Path) -> int:
        files = _files(path) | {one: one.stat() for one in beside}
        if not files:
            raise FileError(path, "no such file or folder")
        size = sum(status.st_size for status in files.values())
        self._make_room(path, size)
        with tempfile.TemporaryDirectory(dir=self.folder) as aside:
            depth = len(path.parent.parts)
            targets = [Path(aside, "new", *one.parts[depth:]) for one in files]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with reaching(path) as (system, _):
                    keys = [system._strip_protocol(str(one)) for one in files]
                    system.get(keys, [str(target) for target in targets])
            except FileNotFoundError as error:
                raise FileError(path, "no such file or folder") from error
            (Path(aside) / "new").replace(place)
        return size

    def _make_room(self, path: Remote, size: int) -> None:
        kept = _limit() - size
        while self._sizes and sum(self._sizes.values()) > kept:
            oldest = next(iter(self._sizes))
            shutil.rmtree(oldest, ignore_errors=True)
            del self._sizes[oldest]
        free = shutil.disk_usage(self.folder).free - _RESERVE
        if size > free:
            raise FileError(
                path, f"{size / 1e9:.1f} GB, and {max(0, free) / 1e9:.1f} GB are free in {tempfile.gettempdir()}",
                "set TMPDIR to a folder on a larger disk",
            )  # fmt: skip


_copies: _Copies | None = None
_making = threading.Lock()


def fetch(path: Path, beside: Sequence[Path] = ()) -> Path:
    """A copy of a file or folder on this machine's disk; itself where it is there already.

    Args:
        path: what is fetched, whole.
        beside: files of the same folder that are read with it.

    Raises:
        FileError: it isn't there, can't be reached, or doesn't fit on the disk.
    """
    global _copies
    if not isinstance(path, Remote):
        return path
    with _making:
        if _copies is None or _copies.process != os.getpid():
            _copies = _Copies()
    return _copies.get(path, [one for one in beside if isinstance(one, Remote)])


@contextmanager
def named_as(path: Path, copy: Path) -> Iterator[None]:
    """Have an error within that names a copy name the original.

    Raises:
        VoxelryError: what is raised within, of `path`.
    """
    try:
        yield
    except VoxelryError as error:
        if path == copy or str(copy.parent) not in str(error):
            raise
        texts = (error.path, error.fault, error.hint) if isinstance(error, FileError) else (str(error),)
        raise type(error)(*(text.replace(str(copy.parent), str(path.parent)) for text in texts)) from error


def put(source: Path, target: Remote) -> None:
    """Copy a file or folder elsewhere, in place of what is there.

    A file appears whole or not at all. Of a folder the files that say what it is (those at its top) come last, and what
    an older one had beside is removed.

    Raises:
        FileError: it can't be written.
    """
    inside = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file())
    inside.sort(key=lambda file: len(file.relative_to(source).parts) == 1)
    names = [target.joinpath(*file.relative_to(source).parts) for file in inside]
    old = set(target.files()) - set(names) if source.is_dir() else set()
    deep = sum(len(file.relative_to(source).parts) > 1 for file in inside)
    for part in (slice(0, deep), slice(deep, None)):
        if inside[part]:
            with reaching(target) as (system, _):
                keys = [system._strip_protocol(str(name)) for name in names[part]]
                system.put([str(file) for file in inside[part]], keys)
    for name in old:
        remove(name)


def remove(path: Remote) -> None:
    """Delete a file elsewhere; none there is well, too.

    Raises:
        FileError: it can't be deleted.
    """
    with suppress(FileNotFoundError), reaching(path) as (system, key):
        system.rm_file(key)


def _files(path: Remote) -> dict[Remote, os.stat_result]:
    """The files of a file or folder."""
    return {path: path.stat()} if path.is_file() else path.files()


def _limit() -> int:
    text = os.environ.get(_LIMIT, "4")
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise SettingError(f"{_LIMIT}: expected gigabytes such as 4, got {text!r}") from None


def _sweep() -> None:
    """Remove copies of processes that were killed."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*.lock"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)

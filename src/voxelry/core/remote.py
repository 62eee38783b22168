"""Files that lie elsewhere: `s3://bucket/scan.nii.gz`, `gs://`, `https://`, whatever fsspec knows.

An address is a path whose first part ends with a colon, so that all that is done with paths (names, suffixes, parents,
what lies in a folder) is done with addresses by the same code. Only the bytes are fetched and put otherwise, see
`core.fetch`. Credentials are fsspec's: environment variables, the provider's own files, and fsspec's configuration.
"""

from __future__ import annotations

import datetime
import errno
import fnmatch
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from voxelry.core.errors import FileError, MissingDependencyError, VoxelryError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    _Path = Path
else:
    _Path = type(Path())

__all__ = ["Remote", "as_path", "beside", "reaching"]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_WEB = ("http:", "https:")  # servers of single files, which don't say what else they have
_CACHING = ("s3:", "s3a:", "gs:", "gcs:")  # that keep what they were told of folders
_MARKERS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_BLOCK = 1 << 18  # bytes that are asked for at once where a file is read in order
_LISTED = 10.0  # seconds for which what a folder held is believed


def as_path(place: str | PathLike[str]) -> Path:
    """A path of this machine's, or an address."""
    if isinstance(place, Remote):
        return place
    text = os.fspath(place)
    if not _ADDRESS.match(text):
        return Path(text)
    if text.lower().startswith("file://"):
        return Path(text[len("file://") :])
    return Remote(text)


def beside(file: Path, named: str) -> Path:
    """What a file names: an address or an absolute path as it is, all else from the file's folder on."""
    return as_path(named) if _ADDRESS.match(named) else file.parent / named


class Remote(_Path):
    """A file or folder elsewhere.

    Its methods answer as those of a path do, but for: `stat().st_mtime_ns`, a number that changes when the file does;
    `mkdir`, which has nothing to do, as folders are the beginnings of names; and `open`, which reads only: files are
    written whole, by `core.fetch.put`. What can't be reached is a `FileError` in one line.
    """

    __slots__ = ()

    def __str__(self) -> str:
        head, *rest = self.parts or (".",)
        return f"{head}//{'/'.join(rest)}" if head.endswith(":") else str(PurePosixPath(head, *rest))

    def __fspath__(self) -> str:
        return str(self)

    def as_posix(self) -> str:
        """The address."""
        return str(self)

    def is_absolute(self) -> bool:
        """Whether it begins with a protocol; what is left of one after `relative_to` doesn't."""
        return bool(self.parts) and self.parts[0].endswith(":")

    def absolute(self) -> Remote:
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> Remote:
        """Itself."""
        return self

    def expanduser(self) -> Remote:
        """Itself."""
        return self

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there with the first of its files."""

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such a file or folder."""
        return self._fact() is not None or (self.parts[0] in _WEB and self.is_dir())

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such a file."""
        fact = self._fact()
        return fact is not None and fact["type"] == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there are files whose names begin so; of a web server, whether Zarr metadata are there."""
        if self.parts[0] in _WEB:
            return self.suffix in ("", ".zarr") and self.has_any(_MARKERS)
        fact = self._fact()
        return fact is not None and fact["type"] == "directory"

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and kind; times are not told, but `st_mtime_ns` changes with the file.

        Raises:
            FileNotFoundError: there is none.
        """
        fact = self._fact()
        if fact is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return _status(fact)

    def iterdir(self) -> Generator[Remote, None, None]:
        """What lies directly in a folder."""
        yield from self._listed(lambda files, key: files.ls(key, detail=True))

    def has_any(self, names: Sequence[str]) -> bool:
        """Whether one of these names is directly in a folder, by one question where folders are listed."""
        if self.parts[0] in _WEB:
            return any((self / name).is_file() for name in names)
        return not {path.name for path in self.iterdir()}.isdisjoint(names)

    def glob(self, pattern: str, **_: Any) -> Generator[Remote, None, None]:
        """Files that match a pattern below a folder."""
        wanted = f"/{pattern}".replace("/**/", "*/")
        for file in self.files(None if "**" in pattern else pattern.count("/") + 1):
            if fnmatch.fnmatchcase("/".join(("", *file.parts[len(self.parts) :])), wanted):
                yield file

    def rglob(self, pattern: str, **_: Any) -> Generator[Remote, None, None]:
        """Files of such a name at any depth."""
        yield from self.glob(f"**/{pattern}")

    def files(self, depth: int | None = None) -> dict[Remote, os.stat_result]:
        """All files below a folder, by name, and what `stat` says of each, by as few questions as can be."""
        facts = self._listed(lambda files, key: files.find(key, maxdepth=depth, detail=True).values())
        return {file: _status(fact) for file, fact in facts.items()}

    def open(self, mode: str = "r", *_: Any, **settings: Any) -> IO[Any]:  # type: ignore[override]
        """A stream to read.

        Raises:
            FileNotFoundError: there is none.
            FileError: it is to be written.
        """
        if set(mode) - set("rbt"):
            raise FileError(self, "a file elsewhere is written whole, not bit by bit")
        with reaching(self) as (files, key):
            stream = files.open(key, "rb", block_size=_BLOCK, cache_type="readahead")
        return stream if "b" in mode else io.TextIOWrapper(stream, **{"encoding": "utf-8", **settings})

    def read_bytes(self) -> bytes:
        """All bytes of the file."""
        return self.read_range(0, None)

    def read_range(self, start: int, stop: int | None) -> bytes:
        """Some bytes of the file, and no others are asked for."""
        with reaching(self) as (files, key):
            return bytes(files.cat_file(key, start=start, end=stop))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """All of the file as text."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8", errors, newline).read()

    def _fact(self) -> dict[str, Any] | None:
        """What is known of the file or folder; None where there is none."""
        try:
            with reaching(self) as (files, key):
                return dict(files.info(key))
        except FileNotFoundError:
            return None

    def _listed(self, ask: Callable[[Any, str], Iterable[dict[str, Any]]]) -> dict[Remote, dict[str, Any]]:
        """What is in a folder, by name, and what is known of each."""
        if self.parts[0] in _WEB:
            raise FileError(self, "a web server doesn't list what it has", "name the files")
        with reaching(self) as (files, key):
            found = {str(fact["name"]).strip("/").removeprefix(key.strip("/")): fact for fact in ask(files, key)}
        # a name with `..` would lie outside of the folder, and one with an empty part can't be named
        fair = {name: fact for name, fact in found.items() if name.strip("/") and not {"", ".", ".."} & _parts(name)}
        return {self / name.strip("/"): fair[name] for name in sorted(fair)}


def _parts(name: str) -> set[str]:
    return set(name.strip("/").split("/"))


@contextmanager
def reaching(address: Remote) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system of an address, and its name there; what fails is one line.

    Raises:
        MissingDependencyError: the package for such addresses isn't installed.
        FileNotFoundError: there is no such file.
        FileError: anything else that keeps it from being reached.
    """
    from fsspec.core import url_to_fs

    try:
        caching = {"listings_expiry_time": _LISTED} if address.parts[0] in _CACHING else {}
        files, key = url_to_fs(str(address), **caching)
        yield files, key
    except (VoxelryError, GeneratorExit):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(address)) from None
    except ImportError as error:
        raise MissingDependencyError(
            f"{address}: the package for such addresses is not installed; install it with: pip install 'voxelry[cloud]'"
        ) from error
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FileError(address, f"can't be reached: {lines[-1] if lines else type(error).__name__}") from error


def _status(fact: dict[str, Any]) -> os.stat_result:
    mode = stat.S_IFDIR if fact["type"] == "directory" else stat.S_IFREG
    size = int(fact.get("size") or 0)
    return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, 0, 0), {"st_mtime_ns": _change(fact)})


def _change(fact: dict[str, Any]) -> int:
    """A number that changes when a file does: of its checksum, else of its time of change."""
    names = ("ETag", "etag", "md5Hash", "crc32c", "LastModified", "updated", "mtime", "created")
    found = next((fact[name] for name in names if fact.get(name)), "")
    text = found.isoformat() if isinstance(found, datetime.datetime) else str(found)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])

"""What became of each file that a command was given: one row a file, in the folder of the outputs.

    OUT/.voxelry/ledger.sqlite    the rows, see `_TABLES`
    OUT/.voxelry/RUN.lock         held by a command for as long as it runs
    OUT/.voxelry/RUN/NAME/        outputs of one file, until all of them are there
    OUT/.voxelry/parts/NAME/      finished parts of one file, for a task that works part by part

Where OUT is elsewhere, all this is on this machine, and a row also lies beside the outputs, see `outputs_elsewhere`.

A row says what its outputs depend on and what is in them, so that the same command does only what is missing. A
command claims a row before it works on it and gives its outputs their place in one step with the row, so that it may
be killed at any moment. Whether the claimant still runs is told by its lock, which ends with it however it ends. Any
number of commands may therefore share a folder.

A step is on the disk when it is over, which takes a disk some milliseconds. Several rows may therefore share one
(`claim`, `settle`), as they do where they come faster than that, see `engine.keeper`. The journal is SQLite's
oldest, beside the database, as its newer one can't be shared over a network's file system.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from filelock import FileLock, Timeout

from voxelry.core.atomic import move
from voxelry.core.errors import DataError, FileError, VoxelryError
from voxelry.core.remote import Remote, as_path
from voxelry.data.cache import content_hash, stamps
from voxelry.engine.outputs_elsewhere import OutputsElsewhere, home_of
from voxelry.io.images.image import split_dataset

__all__ = ["HOME", "Claim", "Dependencies", "Ledger", "Made"]

HOME = ".voxelry"  # in the folder of the outputs
_FORMAT = 1
_MARK = int.from_bytes(b"voxl")  # tells our databases from others
_TOGETHER = 1000  # rows of a step
_PATIENCE = 60.0  # seconds that another process may take for one transaction
_WAY_OUT = "delete {} to do everything anew, or choose another folder"
_TABLES = (
    "CREATE TABLE files (name TEXT PRIMARY KEY, input TEXT, files TEXT, model TEXT, settings TEXT, "
    "state TEXT CHECK (state IN ('running', 'done', 'failed')), owner TEXT, main TEXT, error TEXT, seconds REAL)",
    "CREATE TABLE outputs (path TEXT PRIMARY KEY, name TEXT, digest TEXT, stamps TEXT)",
)
_INDEX = "CREATE INDEX IF NOT EXISTS outputs_of ON outputs (name)"  # of earlier ledgers, too


@dataclass(frozen=True)
class Dependencies:
    """What the outputs of a file depend on; all of it text that is compared.

    Attributes:
        input: the file's absolute path. It may change as long as the old one is gone.
        files: names, sizes and times of change of all files that are read; empty where they can't be told.
        model: the digest of weights and settings.
        settings: whatever else was asked for.
    """

    input: str
    files: str
    model: str
    settings: str

    def changed(self, row: sqlite3.Row) -> str:
        """What differs from a row, in words; empty where nothing does."""
        words = {"files": "another input", "model": "another model", "settings": "other settings"}
        differ = [word for name, word in words.items() if row[name] != getattr(self, name)]
        return " and ".join(differ if self.files else ["another input"])


@dataclass(frozen=True)
class Claim:
    """Who works on a file.

    Attributes:
        state: `ours`: to be done now; `kept`: it is done; `busy`: another command is at it.
        note: why what was done is done anew, or what is odd about what is kept.
        owner: of a busy one.
        main: the first output of a kept one.
    """

    state: Literal["ours", "kept", "busy"]
    note: str = ""
    owner: str = ""
    main: Path | None = None


@dataclass(frozen=True)
class Made:
    """What became of one file.

    Attributes:
        folder: where its outputs are, until they are given their place.
        main: the name of the output that stands for all.
        outputs: the digest of each by its name.
        seconds: how long it took.
        error: one line; empty where it went well.
    """

    folder: str
    main: str = ""
    outputs: Mapping[str, str] | None = None
    seconds: float = 0.0
    error: str = ""


class Ledger:
    """The rows of a folder of outputs; a context, within which files can be claimed.

    Args:
        folder: of the outputs; made if need be.
        guarded: whether outputs of other inputs and those that were changed by hand are never overwritten. Without,
            they are only this program's memory of what it did, and whatever isn't as it was left is done anew.

    Raises:
        FileError: the folder can't be written, or its ledger is of another version or damaged.
    """

    def __init__(self, folder: Path, *, guarded: bool = True):
        self.folder, self.guarded = folder, guarded
        self.home = home_of(folder) if isinstance(folder, Remote) else folder / HOME
        self._elsewhere: OutputsElsewhere | None = None
        self.run = uuid.uuid4().hex[:16]
        self.path = self.home / "ledger.sqlite"

    def __enter__(self) -> Self:
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(self.folder, f"the folder can't be made: {error.strerror or error}") from error
        if isinstance(self.folder, Remote):
            self._elsewhere = OutputsElsewhere(self.folder)
        self._folds = self._elsewhere is None and (self.folder / HOME.upper()).exists()  # for this disk A and a are one
        self._lock = FileLock(self._lock_of(self.run))
        with self._in_one_line():
            self._rows = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            self._rows.row_factory = sqlite3.Row
        try:
            with self._changing():
                self._check()
                self._lock.acquire()
                self._sweep()
                self._learn()
            self.staging.mkdir()
        except BaseException as error:
            self._rows.close()
            if isinstance(error, OSError):
                raise FileError(self.home, f"can't be written: {error.strerror or error}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        shutil.rmtree(self.staging, ignore_errors=True)
        with suppress(OSError):  # parts of a file that isn't done yet
            (self.home / "parts").rmdir()
        self._lock.release()
        self._lock_of(self.run).unlink(missing_ok=True)

    @property
    def staging(self) -> Path:
        """This command's own folder for outputs that aren't complete."""
        return self.home / self.run

    @property
    def together(self) -> int:
        """The most rows that share a step; one where a step reaches elsewhere, which others would wait for."""
        return _TOGETHER if self._elsewhere is None else 1

    def parts(self, name: str = "") -> Path:
        """The folder for finished parts of a file, or for all."""
        return self.home / "parts" / name

    def key(self, name: str) -> str:
        """What two files have in common whose outputs would have the same names on this disk."""
        return _text(name.casefold() if self._folds else name)

    def claim(self, asked: Sequence[tuple[str, Dependencies]]) -> list[Claim | DataError]:
        """Take files to work on, unless they are done or another command is at them; all in one step.

        Args:
            asked: of each file the name of its outputs, without suffixes, and what they depend on.

        Returns:
            Of each who works on it; a DataError where outputs are there that must not be overwritten: of another file,
            or changed by hand.

        Raises:
            FileError: the ledger can't be written.
        """
        answers: list[Claim | DataError] = []
        with self._changing():
            for name, dependencies in asked:
                try:
                    answers.append(self._claim(name, dependencies))
                except DataError as error:
                    answers.append(error)
        return answers

    def _claim(self, name: str, dependencies: Dependencies) -> Claim:
        key, note = self.key(name), ""
        row = self._rows.execute("SELECT * FROM files WHERE name = ?", (key,)).fetchone()
        if row is not None and row["state"] == "running" and self._runs(row["owner"]):
            return Claim("busy", owner=row["owner"])
        if row is not None and row["state"] == "done":
            condition, changed = self._condition(key), dependencies.changed(row)
            main = self.folder / row["main"]
            if not self.guarded:
                changed = changed or ("another input" if row["input"] != _text(dependencies.input) else "")
                note = {"edited": "what was kept of it was changed"}.get(condition, "")
                if condition == "there" and not changed:
                    return Claim("kept", main=main)
            elif condition != "gone":
                self._refuse(row, dependencies, main, edited=condition == "edited" and bool(changed))
                if not changed:
                    return Claim("kept", "changed since it was written" if condition == "edited" else "", main=main)
            note = "its outputs were gone" if condition == "gone" else changed or note
        if row is not None and dependencies.changed(row):
            shutil.rmtree(self.parts(name), ignore_errors=True)
        own = (dependencies.input, dependencies.files, dependencies.model, dependencies.settings)
        self._rows.execute(
            "INSERT OR REPLACE INTO files (name, input, files, model, settings, state, owner) "
            "VALUES (?, ?, ?, ?, ?, 'running', ?)",
            (key, *map(_text, own), self.run),
        )
        return Claim("ours", note)

    def forget_others(self, names: Iterable[str]) -> None:
        """Remove the rows and outputs of all other files than these, unless another command is at them.

        Raises:
            FileError: the ledger or an output can't be written.
        """
        known = {self.key(name) for name in names}
        with self._changing():
            for row in self._rows.execute("SELECT * FROM files").fetchall():
                key = row["name"]
                if key in known or (row["state"] == "running" and self._runs(row["owner"])):
                    continue
                for output in self._rows.execute("SELECT path FROM outputs WHERE name = ?", (key,)).fetchall():
                    self._remove(output["path"])
                if self._elsewhere is not None:
                    self._elsewhere.forget(key)
                self._rows.execute("DELETE FROM outputs WHERE name = ?", (key,))
                self._rows.execute("DELETE FROM files WHERE name = ?", (key,))

    def _remove(self, output: str) -> None:
        path = self.folder / output
        try:
            if self._elsewhere is not None:
                self._elsewhere.remove(output)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(path, f"can't be removed: {error.strerror or error}") from error

    def settle(self, over: Sequence[tuple[str, Made]]) -> list[Path | VoxelryError]:
        """Give the outputs of claimed files their place and note that they are done, or why not; all in one step.

        Returns:
            Of each the main output, or why there is none.

        Raises:
            FileError: the ledger can't be written; then none of them is settled.
        """
        over, answers = list(over), []
        for place, (name, made) in enumerate(over):
            if not made.error:
                try:
                    self._send(name, made)
                except VoxelryError as error:
                    over[place] = name, replace(made, error=str(error))
        with self._changing():
            for place, (name, made) in enumerate(over):
                answers.append(self._settle(name, made))
                if isinstance(answers[-1], VoxelryError):
                    over[place] = name, replace(made, error=str(answers[-1]))
        in_parts = self.parts().exists()
        for name, made in over:
            if in_parts and not made.error:  # finished parts of a failed one are of use again
                shutil.rmtree(self.parts(name), ignore_errors=True)
            _remove_folder(made.folder)
        return answers

    def _settle(self, name: str, made: Made) -> Path | VoxelryError:
        fault: VoxelryError | None = VoxelryError(made.error) if made.error else None
        if fault is None:
            self._rows.execute("SAVEPOINT one")
            try:
                self._publish(name, made)
                return self.folder / made.main
            except VoxelryError as error:
                self._rows.execute("ROLLBACK TO one")
                fault = error
            finally:
                self._rows.execute("RELEASE one")
        self._fail(name, replace(made, error=str(fault)))
        return fault

    def _send(self, name: str, made: Made) -> None:
        """Put outputs elsewhere, which takes longer than others wait for."""
        if self._elsewhere is not None:
            self._put(self._elsewhere, self.key(name), [Path(made.folder) / output for output in made.outputs or ()])

    def _publish(self, name: str, made: Made) -> None:
        key, outputs, folder = self.key(name), dict(made.outputs or {}), Path(made.folder)
        for output in outputs:
            self._refuse_other(key, output)
        for output in outputs if self._elsewhere is None else ():
            self._place(folder / output)
        self._rows.execute("DELETE FROM outputs WHERE name = ?", (key,))
        self._rows.executemany(
            "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)",
            [(self.key(one), key, digest, self._stamps(one)) for one, digest in outputs.items()],
        )
        self._rows.execute(
            "UPDATE files SET state = 'done', main = ?, seconds = ?, error = '' WHERE name = ?",
            (made.main, made.seconds, key),
        )
        if self._elsewhere is not None:
            row = self._rows.execute("SELECT * FROM files WHERE name = ?", (key,)).fetchone()
            self._elsewhere.note(row, outputs)

    def _fail(self, name: str, made: Made) -> None:
        self._rows.execute(
            "UPDATE files SET state = 'failed', error = ?, seconds = ? WHERE name = ?",
            (_text(made.error), made.seconds, self.key(name)),
        )

    def wait(self, owner: str) -> None:
        """Until another command ends, however it ends."""
        if self._lock_of(owner).exists():
            with FileLock(self._lock_of(owner)):
                return

    def _check(self) -> None:
        """Make the tables, or find those of this version."""
        mark, version = (
            self._rows.execute(f"PRAGMA {one}").fetchone()[0] for one in ("application_id", "user_version")
        )
        if (mark, version) == (0, 0) and not self._rows.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in (*_TABLES, f"PRAGMA application_id = {_MARK}", f"PRAGMA user_version = {_FORMAT}"):
                self._rows.execute(statement)
        elif (mark, version) != (_MARK, _FORMAT):
            whose = f"a ledger of version {version}, expected {_FORMAT}" if mark == _MARK else "no ledger of voxelry"
            raise FileError(self.path, whose, _WAY_OUT.format("it"))
        elif (found := self._rows.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        self._rows.execute(_INDEX)

    def _sweep(self) -> None:
        """Remove what commands left that were killed."""
        for lock in self.home.glob("*.lock"):
            if not self._runs(lock.stem):
                shutil.rmtree(self.home / lock.stem, ignore_errors=True)
                lock.unlink(missing_ok=True)

    def _learn(self) -> None:
        """Take over what the rows beside outputs elsewhere say, which other machines may have written."""
        for row, outputs in self._elsewhere.rows() if self._elsewhere is not None else ():
            key = row["name"]
            own = self._rows.execute("SELECT * FROM files WHERE name = ?", (key,)).fetchone()
            if own is None or own["state"] != "running" or not self._runs(own["owner"]):
                names = ", ".join(row)
                self._rows.execute(
                    f"INSERT OR REPLACE INTO files ({names}, state) VALUES ({', '.join('?' * len(row))}, 'done')",
                    tuple(row.values()),
                )
                self._rows.execute("DELETE FROM outputs WHERE name = ?", (key,))
                self._rows.executemany(
                    "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)",
                    [(name, key, digest, marks) for name, digest, marks in outputs],
                )

    def _stamps(self, output: str) -> str:
        """Sizes and times of change of an output's files; empty where there is none."""
        if self._elsewhere is not None:
            found = self._elsewhere.stamps(output)
            return json.dumps(found) if found else ""
        path = self.folder / output
        try:
            return json.dumps(stamps(path))
        except FileError:
            if path.exists():
                raise
            return ""

    def _lock_of(self, run: str) -> Path:
        return self.home / f"{run}.lock"

    def _runs(self, run: str) -> bool:
        """Whether a command still runs; this one does."""
        if run == self.run:
            return True
        if not self._lock_of(run).exists():
            return False
        try:
            with FileLock(self._lock_of(run), timeout=0):
                return False
        except Timeout:
            return True

    def _condition(self, key: str) -> Literal["there", "gone", "edited"]:
        """How the outputs of a file are that was done."""
        rows = self._rows.execute("SELECT * FROM outputs WHERE name = ?", (key,)).fetchall()
        now = {row["path"]: self._stamps(row["path"]) for row in rows}
        if not rows or not all(now.values()):
            return "gone"
        doubtful = [row for row in rows if now[row["path"]] != row["stamps"]]
        same = all(content_hash(self.folder / row["path"]) == row["digest"] for row in doubtful)
        return "there" if same else "edited"

    def _refuse(self, row: sqlite3.Row, dependencies: Dependencies, main: Path, *, edited: bool) -> None:
        earlier = row["input"]
        if earlier != _text(dependencies.input) and split_dataset(as_path(earlier))[0].exists():
            raise DataError(
                f"{dependencies.input}: its output would overwrite that of {earlier}; choose another folder, or delete "
                f"{main}"
            )
        if edited:
            raise DataError(
                f"{main}: changed since it was written; delete it to have it made anew, or choose another folder"
            )

    def _refuse_other(self, key: str, output: str) -> None:
        other = self._rows.execute(
            "SELECT input FROM outputs JOIN files USING (name) WHERE path = ? AND name != ?", (self.key(output), key)
        ).fetchone()
        if other is not None:
            raise DataError(f"{self.folder / output}: it would overwrite an output of {other['input']}")

    def _put(self, elsewhere: OutputsElsewhere, key: str, outputs: Sequence[Path]) -> None:
        for output in outputs:
            self._refuse_other(key, output.name)
        for output in outputs:
            elsewhere.put(output)

    def _place(self, output: Path) -> None:
        target = self.folder / output.name
        try:
            move(output, target, output.parent)
        except OSError as error:
            raise FileError(target, f"can't be written: {error.strerror or error}") from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A transaction: the rows are nobody else's within, and stay as they were if it fails."""
        with self._in_one_line():
            self._rows.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._rows.execute("COMMIT")
            except BaseException:
                if self._rows.in_transaction:
                    self._rows.execute("ROLLBACK")
                raise

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """What goes wrong with the database, in one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise FileError(self.path, f"can't be written: {error}") from error
        except sqlite3.DatabaseError as error:
            raise FileError(self.path, f"damaged: {error}", _WAY_OUT.format("it")) from error


def _text(value: str) -> str:
    """A path as the database can hold it, whatever bytes are in its name."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _remove_folder(folder: str) -> None:
    """One that is empty as a rule, once its outputs have their place."""
    try:
        Path(folder).rmdir()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)

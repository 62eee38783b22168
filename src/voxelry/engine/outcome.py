"""What became of many files: for whoever asked, and as a table on disk."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxelry.core.atomic import replacing
from voxelry.core.choice import check_choice
from voxelry.viz.report import Report

__all__ = ["FileRow", "Outcome", "check_job_report", "write_job_report"]


@dataclass(frozen=True)
class FileRow:
    """What became of one file.

    Attributes:
        input: the file.
        state: `done` now, `kept` from before, or `failed`.
        output: the output that stands for all; None where it failed.
        seconds: how long it took now.
        note: why it failed, why it was done anew, or what is odd about what was kept; one line.
    """

    input: Path
    state: Literal["done", "kept", "failed"]
    output: Path | None = None
    seconds: float = 0.0
    note: str = ""


@dataclass
class Outcome:
    """What became of a list of files, in its order."""

    rows: list[FileRow] = field(default_factory=list)

    @property
    def written(self) -> list[Path]:
        """One output file per input that went well, now or before."""
        return [row.output for row in self.rows if row.output is not None]

    @property
    def kept(self) -> list[Path]:
        """Those of them that were there before."""
        return [row.output for row in self.rows if row.output is not None and row.state == "kept"]

    @property
    def failed(self) -> list[tuple[Path, str]]:
        """Path and one-line reason of every other."""
        return [(row.input, row.note) for row in self.rows if row.state == "failed"]

    @property
    def notes(self) -> list[str]:
        """Lines on what was done anew or is odd, the same words once."""
        words = {"done": "done anew", "kept": "kept as it is"}
        found = Counter((words[row.state], row.note) for row in self.rows if row.note and row.state in words)
        return [f"{count} {done}: {note}" for (done, note), count in found.items()]


def _plain(rows: Sequence[FileRow]) -> list[dict[str, Any]]:
    return [
        {
            "input": str(row.input),
            "state": row.state,
            "output": "" if row.output is None else str(row.output),
            "seconds": round(row.seconds, 3),
            "note": row.note,
        }
        for row in rows
    ]


def _write_csv(place: Path, rows: Sequence[FileRow]) -> None:
    with place.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["input", "state", "output", "seconds", "note"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_plain(rows))


def _write_json(place: Path, rows: Sequence[FileRow]) -> None:
    place.write_text(json.dumps(_plain(rows), indent=1) + "\n", encoding="utf-8")


def _write_html(place: Path, rows: Sequence[FileRow]) -> None:
    counts = Counter(row.state for row in rows)
    report = Report("Files", subtitle=f"{len(rows)} files")
    report.facts({state: counts[state] for state in ("done", "kept", "failed")})
    report.section("Each file").table(_plain(rows))
    place.write_bytes(report.html().encode(errors="backslashreplace"))


_WRITERS: dict[str, Callable[[Path, Sequence[FileRow]], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".html": _write_html,
}


def check_job_report(path: Path) -> None:
    """Refuse a file that no table can be written to.

    Raises:
        SettingError: its suffix.
    """
    check_choice("--job-report", path.suffix.lower(), tuple(_WRITERS))


def write_job_report(path: Path, rows: Sequence[FileRow]) -> Path:
    """A table of what became of each file: CSV, JSON or a page, by the suffix.

    Raises:
        SettingError: another suffix.
        FileError: it can't be written.
    """
    check_job_report(path)
    with replacing(path) as place:
        _WRITERS[path.suffix.lower()](place, rows)
    return path

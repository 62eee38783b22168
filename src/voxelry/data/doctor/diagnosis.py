"""What was found in a dataset, and how it looks on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["SEVERITIES", "CaseRow", "Diagnosis", "Finding", "render"]

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing to know about a dataset.

    Attributes:
        severity: `error`, `warning` or `info`.
        file: the file or folder it is about.
        message: one line.
    """

    severity: str
    file: str
    message: str


@dataclass
class CaseRow:
    """One image, as far as it could be read; None where it couldn't.

    Attributes:
        name: of the case.
        image: its file.
        channels, shape: array sizes; the shape is plane, row, column.
        spacing: mm, in array order.
        axes: nearest anatomical direction of each array axis, such as `SAR`.
        dtype: of the pixels.
        low, high: range of the finite pixels.
        points: present landmarks; `absent` more are NaN.
    """

    name: str
    image: str
    channels: int | None = None
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    axes: str | None = None
    dtype: str | None = None
    low: float | None = None
    high: float | None = None
    points: int | None = None
    absent: int = 0


@dataclass
class Diagnosis:
    """What `inspect` found.

    Attributes:
        root: the path that was inspected.
        rows: one per case, by name.
        findings: errors first, then by file.
    """

    root: str
    rows: list[CaseRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """The findings that are more than an info."""
        return [finding for finding in self.findings if finding.severity != "info"]

    @property
    def ok(self) -> bool:
        """Nothing is wrong: there may be infos, no warnings and no errors."""
        return not self.wrong

    def add(self, severity: str, file: object, message: str) -> None:
        """Note something."""
        self.findings.append(Finding(severity, str(file), message))

    def sort(self) -> None:
        """Errors first, then by file."""
        self.findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.file))


def render(diagnosis: Diagnosis, *, most_rows: int = 40) -> Group:
    """The diagnosis as tables for a terminal; of more than `most_rows` cases, those with findings come first."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    troubled = {finding.file for finding in diagnosis.findings if finding.severity != "info"}
    rows = sorted(diagnosis.rows, key=lambda row: (row.image not in troubled, row.name))
    shown = sorted(rows[:most_rows], key=lambda row: row.name)
    table = Table(title=escape(diagnosis.root), title_justify="left")
    for column in ("case", "shape", "spacing (mm)", "axes", "type", "range", "points"):
        table.add_column(column, overflow="fold")
    for row in shown:
        table.add_row(*(escape(cell) for cell in _cells(row)))
    parts: list[Table | Text] = [table]
    if len(rows) > len(shown):
        parts.append(Text(f"... and {len(rows) - len(shown)} cases more"))
    if diagnosis.findings:
        colours = {"error": "red", "warning": "yellow", "info": "cyan"}
        listing = Table(title="findings", title_justify="left")
        for column in ("", "file", "what"):
            listing.add_column(column, overflow="fold")
        for finding in diagnosis.findings:
            listing.add_row(
                Text(finding.severity, style=colours[finding.severity]),
                escape(_relative(finding.file, diagnosis.root)),
                escape(finding.message),
            )
        parts.append(listing)
    tally = Counter(finding.severity for finding in diagnosis.findings)
    counts = ", ".join(
        f"{tally[severity]} {severity}{'s' * (tally[severity] > 1)}" for severity in SEVERITIES if tally[severity]
    )
    parts.append(Text(f"{len(rows)} case{'s' * (len(rows) != 1)}: {counts or 'nothing is wrong'}"))
    return Group(*parts)


def _relative(file: str, root: str) -> str:
    path = Path(file)
    return str(path.relative_to(root)) if file != root and path.is_relative_to(root) else path.name


def _cells(row: CaseRow) -> list[str]:
    def joined(values: Iterable[object] | None) -> str:
        return "?" if values is None else " x ".join(str(value) for value in values)

    channels = f"{row.channels} ch, " if row.channels not in (None, 1) else ""
    spacing = None if row.spacing is None else [f"{step:.4g}" for step in row.spacing]
    low_high = "?" if row.low is None else f"{row.low:.5g} to {row.high:.5g}"
    points = "-" if row.points is None else str(row.points) + (f" (+{row.absent} absent)" if row.absent else "")
    return [
        row.name,
        channels + joined(row.shape),
        joined(spacing),
        row.axes or "?",
        row.dtype or "?",
        low_high,
        points,
    ]

"""A report: one HTML file that holds everything it shows.

Images are embedded, nothing is fetched from the network and nothing runs in it, so that the file can be
mailed, archived and printed as it is.
"""

from __future__ import annotations

import base64
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from voxelry.core.atomic import replacing
from voxelry.core.errors import SettingError
from voxelry.core.remote import as_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]

_ABSENT = "\N{EN DASH}"  # what a missing or undefined value reads as
_PIXELS_PER_INCH = 96  # CSS


class Report:
    """Headings, text, figures and tables, in the order they are added; every method returns the report.

    Facts that are added before the first section are the summary on top.

    Args:
        title: heading of the page.
        subtitle: one line below it, such as the data set and the model.
    """

    def __init__(self, title: str, *, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[dict[str, Any]] = []

    def section(self, heading: str, text: str = "") -> Self:
        """Begin a section; blank lines in `text` separate paragraphs."""
        anchor = f"section-{1 + self._count('section')}"
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
        return self._add("section", heading=heading, anchor=anchor, paragraphs=paragraphs)

    def facts(self, mapping: Mapping[str, Any]) -> Self:
        """A line of key numbers, name to value; floats are shown with three significant digits."""
        return self._add("facts", entries=[(name, _text(value)) for name, value in mapping.items()])

    def figure(self, fig: Figure, caption: str = "", alt: str = "") -> Self:
        """Embed a matplotlib figure and release it: as PNG when it holds images, as SVG otherwise.

        Args:
            fig: drawn at once, then cleared; it can't be used afterwards.
            caption: what the reader should see in it.
            alt: the same for who can't see it; the caption when empty.
        """
        width, height = fig.get_size_inches() * _PIXELS_PER_INCH
        holds_images = any(axes.images for axes in fig.axes)
        source = _embed(fig, "png" if holds_images else "svg")
        _release(fig)
        return self._add(
            "figure",
            source=source,
            width=round(width),
            height=round(height),
            caption=caption,
            alt=alt or caption,
            number=1 + self._count("figure"),
        )

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Iterable[str] | None = None,
        caption: str = "",
        highlight: Mapping[str, Literal["min", "max"]] | None = None,
    ) -> Self:
        """A table, one row per mapping; a missing or NaN value is a dash.

        Args:
            rows: column name to text or number; a column of numbers shares one number of decimals.
            columns: which to show and in which order; by default all, as they first appear.
            caption: one line above the table.
            highlight: columns whose smallest or largest number is marked, `{"MRE (mm)": "min"}`.

        Raises:
            SettingError: `highlight` names an unknown column or a sense other than min and max.
        """
        names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
        highlight = highlight or {}
        for name, sense in highlight.items():
            if name not in names or sense not in ("min", "max"):
                raise SettingError(
                    f"highlight: expected a column of {names} with 'min' or 'max', got {name!r}: {sense!r}"
                )
        shown = [_column([row.get(name) for row in rows], highlight.get(name)) for name in names]
        numeric = [_is_numeric([row.get(name) for row in rows]) for name in names]
        return self._add(
            "table",
            columns=[{"name": name, "numeric": number} for name, number in zip(names, numeric, strict=True)],
            rows=[list(cells) for cells in zip(*shown, strict=True)],
            caption=caption,
            number=1 + self._count("table"),
        )

    def html(self) -> str:
        """The page as text."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("voxelry.viz", "."),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        headings = [(block["anchor"], block["heading"]) for block in self._blocks if block["kind"] == "section"]
        first = next((i for i, block in enumerate(self._blocks) if block["kind"] == "section"), len(self._blocks))
        blocks = [*self._blocks[:first], {"kind": "contents", "headings": headings}, *self._blocks[first:]]
        return environment.get_template("report.html.j2").render(
            title=self.title, subtitle=self.subtitle, blocks=blocks
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; an interrupted or failed write leaves what was there before.

        Raises:
            FileError: the folder can't be made or written.
        """
        path = as_path(path)
        page = self.html().encode()
        with replacing(path, "can't write the report") as place:
            place.write_bytes(page)
        return path

    def _add(self, kind: str, **block: Any) -> Self:
        self._blocks.append({"kind": kind, **block})
        return self

    def _count(self, kind: str) -> int:
        return sum(block["kind"] == kind for block in self._blocks)


def _embed(fig: Figure, format: Literal["png", "svg"]) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = BytesIO()
    # A fixed salt and no date: the same figure gives the same file.
    with mpl.rc_context({"svg.hashsalt": "voxelry"}):
        if format == "svg":
            FigureCanvasSVG(fig).print_svg(buffer, metadata={"Date": None})
        else:
            fig.set_dpi(2 * _PIXELS_PER_INCH)  # sharp on dense screens and on paper
            FigureCanvasAgg(fig).print_png(buffer)
    media = {"png": "image/png", "svg": "image/svg+xml"}[format]
    return f"data:{media};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _release(fig: Figure) -> None:
    fig.clear()
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:  # a figure made through pyplot stays in its registry until it is closed
        pyplot.close(fig)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_numeric(values: Sequence[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(_is_number(value) for value in present)


def _text(value: Any) -> str:
    """One value by itself: three significant digits for what is not whole."""
    if value is None or (_is_number(value) and math.isnan(value)):
        return _ABSENT
    if isinstance(value, Integral) or not _is_number(value):
        return str(value)
    number = float(value)
    if number == 0 or 1e-3 <= abs(number) < 1e5:
        return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number) or 1)))}f}"
    return f"{number:.2e}"


def _column(values: Sequence[Any], best: Literal["min", "max"] | None) -> list[dict[str, str]]:
    """Text and style of the cells of one column."""
    if not _is_numeric(values):
        return [{"text": _text(value), "style": ""} for value in values]
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    whole = all(isinstance(value, Integral) for value in values if value is not None)
    largest = max((abs(number) for number in finite), default=0.0)
    decimals = 0 if whole else 1 if largest >= 100 else 2 if largest >= 1 else 3
    target = None if best is None or not finite else min(finite) if best == "min" else max(finite)
    cells = []
    for value in values:
        if value is None or not math.isfinite(value):
            text = _text(value)
        elif largest != 0 and not whole and (largest < 1e-2 or largest >= 1e5):
            text = f"{float(value):.2e}"
        else:
            text = f"{float(value):.{decimals}f}" if not whole else str(int(value))
        is_best = target is not None and value is not None and float(value) == target
        cells.append({"text": text, "style": "number best" if is_best else "number"})
    return cells

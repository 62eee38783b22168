import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from voxelry.core.errors import FileError, SettingError
from voxelry.viz import figures
from voxelry.viz.report import Report


class Page(HTMLParser):
    """The tags and text of a page; fails on tags that are closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.text = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def chart():
    return figures.curves({"a": ([0, 1], [1, 2])})


def test_the_page_holds_everything_it_shows():
    html = (
        Report("Landmarks", subtitle="phantoms")
        .facts({"MRE": "1.02 mm"})
        .section("Images", "First paragraph.\n\nSecond.")
        .figure(figures.sheet([np.zeros((1, 8, 8))]), "A sheet", alt="grey squares")
        .figure(chart(), "A curve")
        .html()
    )
    page = Page(html)
    assert page.of("script") == []
    assert page.of("link") == []
    assert not re.search(r"https?://|url\(|@import", re.sub(r"base64,[^\"]*", "", html))
    sheet, curve = page.of("img")
    assert sheet["alt"] == "grey squares"
    assert curve["alt"] == "A curve"
    picture = Image.open(BytesIO(base64.b64decode(sheet["src"].removeprefix("data:image/png;base64,"))))
    assert picture.size[0] == pytest.approx(2 * int(sheet["width"]), abs=2)
    assert b"<svg" in base64.b64decode(curve["src"].removeprefix("data:image/svg+xml;base64,"))
    assert "Figure 1. A sheet" in page.text
    assert "Figure 2. A curve" in page.text
    assert page.text.count("Second.") == 1


def test_text_is_escaped():
    html = Report("<script>alert(1)</script>").section("a < b").table([{"x & y": "<b>"}]).html()
    assert "<script" not in html
    assert "a &lt; b" in html
    assert "x &amp; y" in html
    assert "&lt;b&gt;" in html


def test_tables_share_decimals_and_mark_the_best():
    html = (
        Report("r")
        .table(
            [
                {"name": "a", "mm": 1.234, "n": 3, "small": 1e-5},
                {"name": "b", "mm": float("nan"), "n": np.int64(4), "extra": "x", "small": 2e-5},
                {"name": "c", "mm": 12.0, "n": None, "small": 0.0},
            ],
            highlight={"mm": "min", "n": "max"},
        )
        .html()
    )
    cells = re.findall(r"<td(?: class=\"([^\"]*)\")?>([^<]*)</td>", html)
    rows = [cells[i : i + 5] for i in range(0, 15, 5)]
    dash = "\N{EN DASH}"
    assert rows[0] == [("", "a"), ("number best", "1.23"), ("number", "3"), ("number", "1.00e-05"), ("", dash)]
    assert rows[1] == [("", "b"), ("number", dash), ("number best", "4"), ("number", "2.00e-05"), ("", "x")]
    assert rows[2] == [("", "c"), ("number", "12.00"), ("number", dash), ("number", "0.00e+00"), ("", dash)]


def test_columns_are_chosen_and_ordered():
    html = Report("r").table([{"a": 1, "b": 2, "c": 3}], columns=["c", "a"]).html()
    assert re.findall(r"<th [^>]*>([^<]*)</th>", html) == ["c", "a"]
    assert Report("r").table([], columns=["a"]).html().count("<th ") == 1


@pytest.mark.parametrize("highlight", [{"unknown": "min"}, {"a": "smallest"}])
def test_a_highlight_that_means_nothing_is_an_error(highlight):
    with pytest.raises(SettingError, match="highlight: expected a column"):
        Report("r").table([{"a": 1}], highlight=highlight)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.83127, "0.831"), (12.0, "12.0"), (1234.5, "1234"), (1.2e7, "1.20e+07"), (40, "40"), (0.0, "0.00"),
     (float("nan"), "\N{EN DASH}"), (None, "\N{EN DASH}"), ("91 %", "91 %"), (True, "True")],
)  # fmt: skip
def test_facts_have_three_significant_digits(value, shown):
    assert f"<dd>{shown}</dd>" in Report("r").facts({"fact": value}).html()


def test_three_sections_get_a_table_of_contents():
    report = Report("r").section("one").section("two")
    assert "<nav" not in report.html()
    page = Page(report.section("three").html())
    assert [link["href"] for link in page.of("a")] == [f"#{heading['id']}" for heading in page.of("h2")]


def test_a_figure_is_released():
    from matplotlib import pyplot

    fig = chart()
    Report("r").figure(fig)
    assert fig.axes == []
    made_elsewhere = pyplot.figure()
    made_elsewhere.add_subplot()
    Report("r").figure(made_elsewhere)
    assert pyplot.get_fignums() == []


def test_the_same_report_is_the_same_file(tmp_path):
    first = Report("r").figure(chart()).save(tmp_path / "a.html")
    second = Report("r").figure(chart()).save(tmp_path / "new" / "b.html")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.html"]


def test_a_failed_write_leaves_the_old_report(tmp_path):
    path = Report("old").save(tmp_path / "report.html")
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"report.html/report.html: can't write the report"):
        Report("new").save(path / "report.html")
    assert path.read_bytes() == before
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(FileError, match="can't write the report"):
        Report("new").save(tmp_path / "folder.html")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["folder.html", "report.html"]


def test_an_empty_figure_is_fine():
    assert "data:image/svg" in Report("r").figure(Figure()).html()

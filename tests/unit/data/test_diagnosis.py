"""The doctor's tables."""

import io

import pytest
from rich.console import Console

from voxelry.data.doctor.diagnosis import CaseRow, Diagnosis, Finding, render


@pytest.fixture
def diagnosis():
    rows = [
        CaseRow(f"case_{k}", f"data/case_{k}.nii", 1, (16, 20, 28), (1.2, 1.5, 0.8), "SAR", "int16", -3, 900, 5)
        for k in range(8)
    ]
    return Diagnosis("data", rows, [Finding("info", "data", "mixed axes: 7 x SAR, 1 x PIR")])


def text(diagnosis, **options):
    console = Console(file=io.StringIO(), width=160)
    console.print(render(diagnosis, **options))
    return console.file.getvalue()


def test_a_healthy_dataset(diagnosis):
    shown = text(diagnosis)
    for cell in ("case_7", "16 x 20 x 28", "1.2 x 1.5 x 0.8", "SAR", "int16", "-3 to 900", "8 cases: 1 info"):
        assert cell in shown
    assert diagnosis.ok


def test_nothing_to_say():
    assert text(Diagnosis("data", [CaseRow("a", "data/a.nii")])).endswith("1 case: nothing is wrong\n")


def test_channels_absent_points_and_what_could_not_be_read():
    rows = [CaseRow("a", "data/a.nii", 3, (4, 5), points=4, absent=2), CaseRow("b", "data/b.nii")]
    shown = text(Diagnosis("data", rows))
    assert "3 ch, 4 x 5" in shown
    assert "4 (+2 absent)" in shown
    assert "?" in shown


def test_the_troubled_come_first_where_there_are_many(diagnosis):
    diagnosis.add("error", "data/case_5.nii", "has no landmarks")
    diagnosis.add("warning", "data/case_1.nii", "is constant: every voxel is 7")
    assert [finding.severity for finding in diagnosis.wrong] == ["error", "warning"]
    shown = text(diagnosis, most_rows=3)
    cases, findings = shown.split("findings")
    assert [f"case_{k}" in cases for k in range(8)] == [k in (0, 1, 5) for k in range(8)]
    assert "... and 5 cases more" in cases
    assert "case_5.nii" in findings
    assert "8 cases: 1 error, 1 warning, 1 info" in findings


def test_square_brackets_are_text():
    finding = Finding("warning", "data", "outside [0, 1] [bold]x[/bold]")
    assert "outside [0, 1] [bold]x[/bold]" in text(Diagnosis("data", findings=[finding]))

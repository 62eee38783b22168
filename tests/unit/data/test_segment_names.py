"""Names of classes from the files of labels: one number for one name, over all cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from voxelry.bundle.registry import recipe_named
from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.doctor.inspect import inspect
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.run import prepare_all
from voxelry.data.segment_names import check_numbers, class_list, segment_names
from voxelry.io import write_image

SHAPE = (4, 5, 6)


def add_case(root: Path, name: str, **numbers: int) -> None:
    """An image, and a segment of one plane for each number."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ Space.from_spacing(SHAPE).affine
    pixels = np.random.default_rng(0).random((1, *SHAPE), dtype=np.float32)
    write_image(root / f"volumes/{name}.nii.gz", pixels, Space(SHAPE, affine))
    labels = np.zeros(SHAPE, np.uint8)
    lines = ["NRRD0004", "type: unsigned char", "dimension: 3", "space: left-posterior-superior", "sizes: 6 5 4"]
    lines += ["space directions: (1,0,0) (0,1,0) (0,0,1)", "encoding: raw", "space origin: (0,0,0)"]
    for place, (segment, number) in enumerate(numbers.items()):
        labels[place] = number
        lines += [f"Segment{place}_Name:={segment}", f"Segment{place}_LabelValue:={number}", f"Segment{place}_Layer:=0"]
    (root / "labels").mkdir(exist_ok=True)
    (root / f"labels/{name}.seg.nrrd").write_bytes("\n".join(lines).encode() + b"\n\n" + labels.tobytes())


def test_names_of_all_cases_together(tmp_path):
    add_case(tmp_path, "a", liver=1, spleen=4)
    add_case(tmp_path, "b", tumour=2, liver=1)
    names = segment_names(find_cases(tmp_path))
    assert names == {1: "liver", 4: "spleen", 2: "tumour"}
    assert class_list(names) == ["liver", "tumour", "class_3", "spleen"]
    assert inspect(tmp_path).ok


def test_plain_label_maps_have_none(tmp_path):
    space = Space.from_spacing(SHAPE)
    for folder in ("volumes", "labels"):
        write_image(tmp_path / folder / "a.nii.gz", np.ones((1, *SHAPE), np.uint8), space)
    assert segment_names(find_cases(tmp_path)) == {}
    assert class_list({}) == []


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ({"liver": 2, "spleen": 1}, "segment liver has the number 2, but 1 in"),
        ({"kidney": 1}, "number 1 is segment kidney, but liver in"),
    ],
)
def test_a_name_with_other_numbers_is_refused_and_numbered_by_name_as_advised(tmp_path, second, fault):
    add_case(tmp_path, "a", liver=1, spleen=2)
    add_case(tmp_path, "b", **second)
    with pytest.raises(DataError, match=fault) as error:
        segment_names(find_cases(tmp_path))
    assert "'data.options={label_dataset: [" in str(error.value)
    with pytest.raises(DataError, match=fault):
        prepare_all(find_cases(tmp_path), tmp_path / "out", PrepareSettings())
    assert [found.message for found in inspect(tmp_path).findings if found.severity == "error"] == [str(error.value)]
    chosen = ["liver", "kidney", "spleen"] if "kidney" in second else ["liver", "spleen"]
    names = segment_names(find_cases(tmp_path, options={"label_dataset": chosen}))
    assert names == dict(enumerate(chosen, 1))


def test_a_misspelt_name_is_refused(tmp_path):
    add_case(tmp_path, "a", liver=1, spleen=2)
    add_case(tmp_path, "b", liver=1)
    cases = find_cases(tmp_path, options={"label_dataset": ["liver", "spleen"]})
    assert segment_names(cases) == {1: "liver", 2: "spleen"}  # a case without a spleen is one
    cases = find_cases(tmp_path, options={"label_dataset": ["liver", "spline"]})
    with pytest.raises(DataError, match="no case has a segment 'spline'; there are liver, spleen"):
        segment_names(cases)


def named(**numbers: int) -> list[Case]:
    return [
        Case("a", Path("a.nii"), labels=Path("a_seg.nii"), classes={number: name for name, number in numbers.items()})
    ]


def test_a_class_of_a_model_has_one_number(caplog):
    check_numbers(named(organ=1, Lesion=2), {1: "organ", 2: "lesion"})
    check_numbers(named(organ=1), {1: "organ", 2: "lesion"})
    assert not caplog.text
    with pytest.raises(
        DataError, match=r"a_seg.nii: lesion is class 1 here, but 2 for the model; .*: 1 organ, 2 lesion"
    ):
        check_numbers(named(lesion=1, organ=2), {1: "organ", 2: "lesion"})
    check_numbers(named(tumour=1), {1: "organ", 2: "lesion"})
    assert "class 1 is tumour here, and organ for the model" in caplog.text


def test_a_trained_task_is_not_measured_on_classes_in_another_order():
    cases = SimpleNamespace(
        cases=[replace(named(lesion=1, organ=2)[0], instances=Path("a_seg.nii"))], reads_own=lambda: False
    )
    segment = SimpleNamespace(class_names=["organ", "lesion"])
    reconstruct = SimpleNamespace(organs=[(1,), (2,), (3, 4)], names=["organ", "lesion", "3+4"])
    for recipe, task in (("segment", segment), ("reconstruct", reconstruct), ("reconstruct_flow", reconstruct)):
        with pytest.raises(DataError, match="lesion is class 1 here, but 2 for the model"):
            recipe_named(recipe).check(task, cases)

"""The command behind `voxelry prepare`, from a folder to a page to look at."""

import numpy as np
import pytest
from PIL import Image

from voxelry.core.errors import DataError, SettingError
from voxelry.engine.prepare import prepare
from voxelry.phantoms import write_phantoms


def test_a_folder_is_prepared_summarised_and_drawn(tmp_path):
    source = write_phantoms(tmp_path / "data", 2, shape=(20, 24, 22), spacing=(12.0, 10.0, 11.0))
    out, seen = tmp_path / "out", []
    settings = {"classes": 30, "spacing": 10.0, "truncation": 30.0, "slices_per_class": 1, "meshes": False}
    summary = prepare(source, out, progress=lambda *state: seen.append(state), **settings)
    assert (summary.made, summary.kept, summary.faults) == (2, 0, ())
    assert seen[-1][:2] == (2, 2)
    assert summary.slices >= 10
    text = summary.render()
    assert "2 cases prepared" in text
    assert "ml on average" in text
    assert "read as  mr in 2 cases" in text
    with Image.open(out / "contact_sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 300
    colourful = np.ptp(pixels, axis=-1) > 60
    assert colourful.sum() > 100  # contours and clicks
    again = prepare(source, out, sheet=False, **settings)
    assert (again.made, again.kept, again.sheet) == (0, 2, None)
    images = sorted((source / "volumes").iterdir())
    assert [(row.input, row.state) for row in summary.rows] == [(image, "done") for image in images]
    assert [(row.input, row.state) for row in again.rows] == [(image, "kept") for image in images]
    assert all(row.output.is_file() for row in again.rows)
    (source / "labels" / images[1].name).write_bytes(b"no labels")
    kept, failed = prepare(source, out, sheet=False, on_error="skip", **settings).rows
    assert (kept.state, failed.state, failed.output) == ("kept", "failed", None)
    assert str(source / "labels" / images[1].name) in failed.note
    lines = (out / "jobs.csv").read_text().splitlines()
    assert (len(lines), lines[2].startswith(f"{images[1]},failed,,")) == (3, True)


def test_labels_beyond_the_classes_stop_it(tmp_path):
    source = write_phantoms(tmp_path / "data", 1, shape=(20, 24, 22), spacing=12.0)
    with pytest.raises(DataError, match="but classes is 1"):
        prepare(source, tmp_path / "out", classes=1, spacing=12.0)


def test_what_would_overwrite_or_hide_is_refused(tmp_path):
    source = write_phantoms(tmp_path / "data", 1, shape=(20, 24, 22), spacing=12.0)
    with pytest.raises(SettingError, match="out: expected another folder than the source"):
        prepare(source, tmp_path / "elsewhere" / ".." / "data")
    with pytest.raises(SettingError, match="merge: expected every class number once, got 1 more often"):
        prepare(source, tmp_path / "out", merge=[[1], [2, 1]])
    with pytest.raises(DataError, match=r"is a single voxel of 500 x 500 x 500 mm; .*such as 12"):
        prepare(source, tmp_path / "out", spacing=500.0)
    image = next((source / "volumes").iterdir())
    with pytest.raises(DataError, match=r"case_000\.nii\.gz: no labels for this image; expected labels/"):
        prepare(image, tmp_path / "out")


def test_nothing_of_other_settings_or_cases_is_left_unseen(tmp_path):
    source = write_phantoms(tmp_path / "data", 2, shape=(20, 24, 22), spacing=12.0)
    out, settings = tmp_path / "out", {"spacing": 12.0, "truncation": 30.0, "slices_per_class": 1, "sheet": False}
    prepare(source, out, sdf="full", **settings)
    assert any((out / "meshes").iterdir())
    for folder in ("volumes", "labels", "landmarks"):
        for file in sorted((source / folder).glob("*"))[1:]:
            file.unlink()
    found = prepare(source, out, meshes=False, **settings)
    names = [path.stem for path in sorted((out / "cases").iterdir())]
    assert found.warnings[-1].startswith(f"{names[1]} (one of 1): of an earlier run and not in the source")
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert not [name for name in written if name.startswith((f"meshes/{names[0]}_", f"sdf/{names[0]}_sdf"))]
    assert [name for name in written if name.startswith(f"meshes/{names[1]}_")]

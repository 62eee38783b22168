"""The command behind `voxelry prepare`, from a folder to a page to look at."""

import numpy as np
import pytest
from PIL import Image

from voxelry.core.errors import DataError
from voxelry.data.phantoms import write_phantoms
from voxelry.engine.prepare import prepare


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
    with Image.open(out / "contact_sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 300
    colourful = np.ptp(pixels, axis=-1) > 60
    assert colourful.sum() > 100  # contours and clicks
    again = prepare(source, out, sheet=False, **settings)
    assert (again.made, again.kept, again.sheet) == (0, 2, None)


def test_labels_beyond_the_classes_stop_it(tmp_path):
    source = write_phantoms(tmp_path / "data", 1, shape=(20, 24, 22), spacing=12.0)
    with pytest.raises(DataError, match="but classes is 1"):
        prepare(source, tmp_path / "out", classes=1, spacing=12.0)

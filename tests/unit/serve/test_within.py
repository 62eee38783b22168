"""Links in a named folder to what wasn't named are neither shown nor offered."""

import numpy as np
import pytest
from typer.testing import CliRunner

from voxelry.cli import app
from voxelry.core.space import Space
from voxelry.engine.inputs import gather_inputs
from voxelry.io import write_image
from voxelry.serve.masks import found_masks
from voxelry.serve.within import links_out


@pytest.fixture
def folders(tmp_path):
    """A folder with a scan, its label, and links to scans and a folder elsewhere."""
    space = Space.from_spacing((4, 5, 6))
    for name in ("data/scan", "data/scan_seg", "elsewhere/private", "elsewhere/scan_private"):
        write_image(tmp_path / f"{name}.nii.gz", np.ones((1, *space.shape), np.uint8), space)
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "linked.nii.gz").symlink_to(elsewhere / "private.nii.gz")
    (data / "within.nii.gz").symlink_to(data / "scan.nii.gz")
    (data / "scan_linked").symlink_to(elsewhere)
    (data / "scan_round").symlink_to(data)
    return data, elsewhere


def test_links_out_of_a_folder_are_told_unless_their_target_was_named(folders):
    data, elsewhere = folders
    found = gather_inputs([data])
    assert links_out(found, [data]) == [data / "linked.nii.gz"]
    assert not links_out(found, [data, elsewhere])
    assert not links_out([data / "linked.nii.gz"], [data / "linked.nii.gz"])


def test_no_mask_is_offered_from_elsewhere_or_twice(folders):
    data, _ = folders
    images = [path for path in gather_inputs([data]) if path not in links_out(gather_inputs([data]), [data])]
    offered = found_masks(data / "scan.nii.gz", images, [data])
    assert [path.name for path in offered] == ["scan_seg.nii.gz", "within.nii.gz"]


def test_the_command_shows_no_links_and_says_so(folders, tmp_path, monkeypatch):
    data, _ = folders
    shown = []
    monkeypatch.setattr(
        "voxelry.serve.run.serve", lambda images, *_, **__: shown.append([path.name for path in images])
    )
    ended = CliRunner().invoke(app, ["view", str(data), "--no-open"])
    assert ended.exit_code == 0, ended.output
    assert shown == [["scan.nii.gz", "scan_seg.nii.gz", "within.nii.gz"]]
    assert f"{data / 'linked.nii.gz'}: links to what wasn't named" in ended.output
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one.nii.gz").symlink_to(data / "scan.nii.gz")
    ended = CliRunner().invoke(app, ["view", str(tmp_path / "links"), "--no-open"])
    assert "no images there but links" in str(ended.exception)

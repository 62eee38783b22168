"""The manifest of a run, and the run done again."""

import json

import pytest
from safetensors.torch import load_file, save_file

from voxelry.core.errors import CheckpointError, FileError
from voxelry.engine.manifest import MANIFEST, differences, read_manifest
from voxelry.engine.rerun import compare_runs, rerun
from voxelry.engine.train import train


def test_a_run_is_done_again_bit_for_bit_and_what_changed_is_told(training, tmp_path, phantoms):
    run = train(training("landmarks_3d", "trainer.max_steps=2")).bundle.parent
    said = read_manifest(run)
    assert {"torch", "voxelry", "python"} <= said["versions"].keys()
    assert said["settings"]["data"]["root"] == str(phantoms)
    assert (said["seed"], sorted(said["data"])) == (0, ["test", "train", "validation"])
    again = rerun(run)
    assert (again.folder, again.same, again.lines) == (tmp_path / "run_again", True, ())
    with pytest.raises(FileError, match=r"manifest.json: no such file \(expected the folder of a run\)"):
        rerun(tmp_path)
    (run / MANIFEST).write_text(json.dumps({**said, "commit": "another"}))
    weights = run / "bundle" / "weights.safetensors"
    tensors = load_file(weights)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    save_file({**tensors, name: tensors[name] + 1.0}, weights)
    other = compare_runs(run, again.folder)
    assert not other.same
    assert other.lines[0].startswith("commit: was another, is ")
    assert other.lines[1] == f"weights: 1 of {len(tensors)} tensors differ, by up to 1"
    weights.unlink()
    with pytest.raises(CheckpointError, match="holds no bundle to compare with"):
        rerun(run, tmp_path / "fourth")


def test_what_went_in_is_compared():
    before = {
        "versions": {"torch": "1"},
        "machine": {"cores": 2},
        "commit": "a",
        "data": {"train": {"x": "1", "y": "2"}},
    }
    now = {"versions": {"torch": "2"}, "machine": {"cores": 2}, "commit": "b", "data": {"train": {"x": "1", "y": "3"}}}
    assert list(differences(before, now)) == [
        "versions: torch was 1, is 2", "commit: was a, is b", "data: 1 train cases are others: y",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "settings": {}}', '{"format": 1, "settings": []}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(FileError, match="manifest"):
        read_manifest(tmp_path)

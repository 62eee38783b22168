from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.doctor.diagnosis import Diagnosis
from voxelry.data.doctor.pairs import holds_pairs, inspect_pairs
from voxelry.data.layouts.find import find_pairs
from voxelry.data.pairs import PairDataset
from voxelry.io import write_image


def write(path: Path, space: Space, seed: int = 0) -> None:
    write_image(path, np.random.default_rng(seed).random((1, *space.shape)).astype(np.float32), space)


@pytest.fixture
def pairs(tmp_path: Path, oblique: Space) -> Path:
    for folder in "AB":
        for seed, name in enumerate("xyz"):
            write(tmp_path / "pairs" / folder / f"{name}.nii.gz", oblique, seed)
    return tmp_path / "pairs"


def messages(diagnosis: Diagnosis, severity: str) -> list[str]:
    return [f"{Path(one.file).name} {one.message}" for one in diagnosis.findings if one.severity == severity]


def test_nothing_is_wrong(pairs):
    diagnosis = inspect_pairs(pairs)
    assert diagnosis.ok
    assert diagnosis.findings == []
    assert len(diagnosis.rows) == 6


def test_every_unpaired_file_is_named(pairs, oblique):
    write(pairs / "A" / "alone.nii.gz", oblique)
    (pairs / "A" / "x.nii.gz").unlink()
    assert messages(inspect_pairs(pairs), "error") == [
        "alone.nii.gz is unpaired: no target of the name alone",
        "x.nii.gz is unpaired: no image x in A",
    ]


def test_other_grids(pairs, oblique):
    write(pairs / "A" / "y.nii.gz", oblique.crop((0, 3.0, 0), oblique.shape))
    (message,) = messages(inspect_pairs(pairs), "error")
    assert message.startswith("y.nii.gz lies elsewhere than ")
    assert "data.pairs.resample=true" in message
    with pytest.raises(DataError) as caught:
        PairDataset(find_pairs(pairs)).check()
    assert str(caught.value).endswith(message.removeprefix("y.nii.gz "))


def test_constant_and_not_finite(pairs, oblique):
    write_image(pairs / "B" / "y.nii.gz", np.ones((1, *oblique.shape), np.float32), oblique)
    strange = np.zeros((1, *oblique.shape), np.float32)
    strange[0, 0, 0, :2] = np.nan, 1
    write_image(pairs / "A" / "z.nii.gz", strange, oblique)
    diagnosis = inspect_pairs(pairs)
    assert messages(diagnosis, "error") == [
        "z.nii.gz 1 of 13440 voxels are NaN or infinite",
        "y.nii.gz constant, every voxel is 1",
    ]


def test_contrasts_with_gaps_and_without_a_target(tmp_path, oblique):
    for folder, cases in {"t1": "ab", "t2": "b", "flair": "ab"}.items():
        for name in cases:
            write(tmp_path / folder / f"{name}.nii.gz", oblique)
    for target in (None, "flair"):
        diagnosis = inspect_pairs(tmp_path, target=target)
        assert diagnosis.ok
        assert [one.message for one in diagnosis.findings] == ["1 of 2 cases have no t2: a"]
    with pytest.raises(SettingError, match="target: expected one of the folders"):
        inspect_pairs(tmp_path, target="pd")


def test_pairs_by_order_are_said(tmp_path, oblique):
    for folder, name in (("A", "one"), ("B", "two")):
        write(tmp_path / folder / f"{name}.nii.gz", oblique)
    assert messages(inspect_pairs(tmp_path), "info")[0].endswith("one.nii.gz with two.nii.gz")


def test_a_file_that_cannot_be_read_is_a_finding(pairs):
    (pairs / "A" / "x.nii.gz").write_bytes(b"nothing")
    assert [message.split()[0] for message in messages(inspect_pairs(pairs), "error")] == ["x.nii.gz"]


def test_what_is_taken_for_pairs(pairs, tmp_path, oblique):
    write(tmp_path / "plain" / "volumes" / "a.nii.gz", oblique)
    write(tmp_path / "plain" / "labels" / "a.nii.gz", oblique)
    write(tmp_path / "slices" / "a_1.nii.gz", oblique)
    assert holds_pairs(pairs)
    assert holds_pairs(tmp_path / "slices", "pmub")
    assert not holds_pairs(pairs, "images")
    assert not any(holds_pairs(tmp_path / name) for name in ("plain", "slices", "none"))
    with pytest.raises(FileError, match="no such file or folder"):
        inspect_pairs(tmp_path / "none", layout="ab")


def test_on_the_command_line(pairs, oblique):
    from voxelry.cli import app

    assert CliRunner().invoke(app, ["doctor", str(pairs)]).exit_code == 0
    write(pairs / "A" / "alone.nii.gz", oblique)
    result = CliRunner().invoke(app, ["doctor", str(pairs), "--layout", "ab"])
    assert result.exit_code == 1
    assert "is unpaired" in result.output

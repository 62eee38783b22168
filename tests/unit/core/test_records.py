"""Records in a file: what comes back, and what is refused."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from voxelry.core.errors import FileError
from voxelry.core.records import read_head, read_record, write_records
from voxelry.core.space import Space
from voxelry.ops.instances import PackedCrops


@dataclass(frozen=True)
class Found:
    name: str
    space: Space
    places: tuple[Space, ...]
    image: torch.Tensor
    by_name: dict[str, np.ndarray]
    crops: PackedCrops | None = None


CLASSES = (Found, Space, PackedCrops)


def record(seed=0):
    rng = np.random.default_rng(seed)
    grid = Space.from_spacing((2, 3), 0.7, (1.0, 2.0, 3.0))
    mask = rng.random((2, 3)) > 0.5
    return Found(
        "näme",
        grid,
        (grid, grid.resize((4, 6))),
        torch.rand(3, 2, generator=torch.Generator().manual_seed(seed)).T,
        {"empty": np.zeros((0, 2)), "none": np.array(math.nan), "ids": np.array([1, 2**40]), "mask": mask},
        PackedCrops.pack([((slice(0, 2), slice(1, 4)), mask)], 2),
    )


def test_a_record_comes_back_as_it_was(tmp_path):
    path, given = tmp_path / "one.safetensors", [record(0), [None, 1, 2.5, True, "x", math.inf], record(1)]
    write_records(path, {"rows": [{"value": math.nan}]}, given, CLASSES)
    assert math.isnan(read_head(path)["rows"][0]["value"])
    assert read_record(path, 1) == given[1]
    found, expected = read_record(path, 2, CLASSES), given[2]
    assert found.name == expected.name
    assert [space.shape for space in found.places] == [(2, 3), (4, 6)]
    np.testing.assert_array_equal(found.space.affine, expected.space.affine)
    assert torch.equal(found.image, expected.image)
    for name, array in expected.by_name.items():
        assert (found.by_name[name].dtype, found.by_name[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found.by_name[name], array)
    np.testing.assert_array_equal(found.crops[0][1], expected.crops[0][1])


def test_the_same_record_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_records(tmp_path / name, {"b": 1, "a": 2}, [record()], CLASSES)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_only_what_is_listed_is_written_and_read(tmp_path):
    path = tmp_path / "one.safetensors"
    with pytest.raises(TypeError, match="PackedCrops: expected one of Found, Space"):
        write_records(path, {}, [record()], (Found, Space))
    write_records(path, {}, [record()], CLASSES)
    with pytest.raises(
        FileError, match=r"one.safetensors: damaged: expected records of Space, got Found \(delete it\)"
    ):
        read_record(path, 0, (Space,))


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def of_others(path):
    save_file({"a": np.zeros(3)}, path)


def of_another_version(path):
    save_file(load_file(path), path, metadata={"voxelry": json.dumps({"format": 2, "head": {}, "records": []})})


def without_an_array(path):
    tree = [{"is": "array", "name": "0.9"}]
    save_file({}, path, metadata={"voxelry": json.dumps({"format": 1, "head": {}, "records": tree})})


@pytest.mark.parametrize("change", [cut, of_others, of_another_version, without_an_array])
def test_a_damaged_file_is_one_line(tmp_path, change):
    path = tmp_path / "one.safetensors"
    write_records(path, {}, [record()], CLASSES)
    change(path)
    with pytest.raises(FileError, match=r"^[^\n]*one.safetensors: damaged: [^\n]*\(delete it\)$"):
        read_record(path, 0, CLASSES)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(FileError, match=r"one.safetensors: no such file"):
        read_head(tmp_path / "one.safetensors")

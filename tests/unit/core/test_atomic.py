import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from voxelry.core.atomic import replacing


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_a_library_writes_for_its_owner_alone_gets_the_mode_of_new_files(tmp_path, umask):
    weights = {"weight": torch.zeros(2)}
    with replacing(tmp_path / "alone.safetensors") as place:
        save_file(weights, place)
    with replacing(tmp_path / "folder") as place:
        (place / "inner").mkdir(parents=True)
        save_file(weights, place / "inner" / "deep.safetensors")
        (place / "plain.txt").write_text("x")
    files = ("alone.safetensors", "folder/inner/deep.safetensors", "folder/plain.txt")
    assert {mode(tmp_path / name) for name in files} == {0o666 & ~umask}
    assert {mode(tmp_path / name) for name in ("folder", "folder/inner")} == {0o777 & ~umask}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.safetensors", "folder"]

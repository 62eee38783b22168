import pytest

from voxelry.core.errors import FileError, MissingDependencyError, VoxelryError
from voxelry.core.optional import require


def test_a_message_is_one_line_whatever_it_was_made_from():
    error = FileError("a.nii", "broken\n  in two", "say\nhow")
    assert str(error) == "a.nii: broken in two (say how)"
    assert error.path == "a.nii"
    assert isinstance(error, VoxelryError)


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingDependencyError, match=r"pip install 'voxelry\[ray\]'"):
        require("no_such_package_anywhere", "ray")
    assert require("json", "ray").dumps([]) == "[]"

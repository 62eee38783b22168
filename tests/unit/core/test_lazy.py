import sys

import pytest

from voxelry.core.lazy import lazily


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose only name is imported late, and is found once."""
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "__init__.py").write_text(
        "from voxelry.core.lazy import lazily\n__getattr__ = lazily(__name__, {'thing': 'late.heavy'})\n"
    )
    (tmp_path / "late" / "heavy.py").write_text("thing = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("late")
    for name in ("late", "late.heavy"):
        sys.modules.pop(name, None)


def test_a_name_is_imported_when_it_is_used(package):
    assert "late.heavy" not in sys.modules
    found = package.thing
    assert found is sys.modules["late.heavy"].thing
    assert vars(package)["thing"] is found


def test_a_name_that_is_not_there_is_no_attribute(package):
    with pytest.raises(AttributeError, match="module 'late' has no attribute 'other'"):
        _ = package.other
    assert not hasattr(package, "other")


def test_a_place_that_is_not_there_is_told():
    with pytest.raises(ModuleNotFoundError):
        lazily("late", {"thing": "voxelry.nowhere"})("thing")

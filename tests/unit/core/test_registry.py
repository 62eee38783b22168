"""Names to things, ours and those of other packages."""

import fractions

import pytest

from voxelry.core.errors import SettingError
from voxelry.core.registry import Registry


@pytest.fixture
def registry() -> Registry:
    return Registry("toys", "toy", {"fraction": "fractions:Fraction", "module": "fractions"})


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another package with entry points, as an installer leaves it."""

    def install(**points: str) -> None:
        (tmp_path / "toy_package.py").write_text("class Toy:\n    pass\n")
        folder = tmp_path / "toy_package-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {place}" for name, place in points.items())
        (folder / "entry_points.txt").write_text(f"[voxelry.toys]\n{lines}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_an_entry_is_what_its_place_says(registry):
    assert registry["fraction"] is fractions.Fraction
    assert registry["module"] is fractions
    assert registry.name_of(fractions.Fraction) == "fraction"
    assert list(registry) == ["fraction", "module"]


def test_other_packages_add_entries_and_replace_none(registry, installed):
    installed(toy="toy_package:Toy", fraction="toy_package:Toy")
    assert registry["toy"].__name__ == "Toy"
    assert registry["fraction"] is fractions.Fraction
    assert list(registry) == ["fraction", "module", "toy"]
    assert registry.name_of(registry["toy"]) == "toy"


def test_unknown_names_and_broken_entries_are_one_line(registry, installed):
    installed(broken="toy_package:Absent", gone="no_such_package")
    with pytest.raises(SettingError, match="toy: expected one of fraction, module, broken, gone, got 'other'"):
        registry["other"]
    with pytest.raises(SettingError, match="toy broken: toy_package:Absent of an entry point can't be imported"):
        registry["broken"]
    with pytest.raises(SettingError, match="toy gone: no_such_package of an entry point can't be imported"):
        registry["gone"]
    with pytest.raises(SettingError, match="toy int: expected one of"):
        Registry("toys", "toy", {}).name_of(int)

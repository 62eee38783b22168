"""Where the groups of settings lie: in our package, and in those that others name by an entry point.

[project.entry-points."voxelry.configs"]
my_package = "my_package.configs"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from voxelry.core.errors import ConfigError

__all__ = ["OWN", "groups", "packages", "top_file"]

OWN = "voxelry.configs"
_NO_GROUPS = ("hydra", "__pycache__")


@cache
def packages() -> dict[str, Path]:
    """The packages that hold configurations, ours first, and the folder of each.

    Raises:
        ConfigError: an entry point names a package that isn't there.
    """
    found = {}
    for name in (OWN, *sorted({point.value for point in entry_points(group=OWN)})):
        try:
            spec = find_spec(name)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{name}: an entry point of {OWN} names it, but there is no such package")
        found[name] = Path(next(iter(spec.submodule_search_locations)))
    return found


@cache
def groups() -> dict[str, dict[str, Path]]:
    """The groups of settings, and the file of each entry by its name; where two have one name, ours counts."""
    found: dict[str, dict[str, Path]] = {}
    for package in packages().values():
        for folder in sorted(package.iterdir()):
            if folder.is_dir() and folder.name not in _NO_GROUPS:
                files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
                found[folder.name] = files | found.get(folder.name, {})
    return {name: dict(sorted(entries.items())) for name, entries in found.items()}


def top_file() -> Path:
    """The file that puts an entry of each group together."""
    return packages()[OWN] / "train.yaml"


class _OtherPackages(SearchPathPlugin):
    """Has Hydra look where `packages` says, too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the packages behind ours."""
        for name in packages():
            if name != OWN:
                search_path.append(provider="voxelry", path=f"pkg://{name}")


Plugins.instance().register(_OtherPackages)

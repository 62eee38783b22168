"""Whatever a configuration or a file's suffix can name, and where it is to be found.

A registry holds the place of each thing, `"package.module:object"`, and imports it when it is asked for. Other packages
add to it through an entry point of the registry's group:

    [project.entry-points."voxelry.backbones"]
    convnext = "my_package.convnext:ConvNeXt"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from voxelry.core.choice import unknown_choice
from voxelry.core.errors import SettingError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Things of one sort by name, ours first and then those of other packages.

    Args:
        group: of the entry points, without `voxelry.`, such as `backbones`.
        word: what one of them is called in messages, such as `backbone`.
        entries: the place of each of ours by its name.
    """

    def __init__(self, group: str, word: str, entries: Mapping[str, str]):
        self.group = group
        self.word = word
        self._own = dict(entries)

    @cached_property
    def _places(self) -> dict[str, str]:
        found = {point.name: point.value for point in entry_points(group=f"voxelry.{self.group}")}
        return {**found, **self._own}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._own, *(name for name in self._places if name not in self._own)])

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._places

    def __getitem__(self, name: str) -> T:
        """The thing itself, imported.

        Raises:
            SettingError: an unknown name, or another package's that can't be imported.
        """
        if name in self._own:  # without a look at what is installed
            found: T = self._load(self._own[name])
            return found
        if name not in self._places:
            raise unknown_choice(self.word, name, self)
        try:
            found = self._load(self._places[name])
        except (ImportError, AttributeError) as error:
            place = self._places[name]
            raise SettingError(f"{self.word} {name}: {place} of an entry point can't be imported: {error}") from error
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """The thing of that name, or `default` where there is none."""
        return self[name] if name in self else default  # noqa: SIM401 it is this one

    def name_of(self, thing: object) -> str:
        """The name that a thing has here.

        Raises:
            SettingError: it has none.
        """
        called = getattr(thing, "__name__", repr(thing))
        for name, place in self._places.items():
            # only what is called the same is imported
            if place.rpartition(":")[2] == called and self[name] is thing:
                return name
        raise SettingError(f"{self.word} {called}: expected one of {', '.join(self)}")

    @staticmethod
    def _load(place: str) -> Any:
        module, _, attribute = place.partition(":")
        loaded = import_module(module)
        return getattr(loaded, attribute) if attribute else loaded

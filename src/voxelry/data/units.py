"""What of a dataset belongs together when its samples are measured one by one: those of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Chosen", "Unit"]


@dataclass(frozen=True)
class Unit:
    """The samples that one image gives.

    Attributes:
        name: of the case, unique in the dataset.
        image: its file.
        files: all that they are read from.
        numbers: of the samples in the dataset.
        settings: what else they depend on beside the model, such as options of the readers.
    """

    name: str
    image: Path
    files: tuple[Path, ...]
    numbers: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """Some samples of a source, in that order."""

    source: Any
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.numbers[index]]

    def sample(self, index: int, epoch: int) -> Any:
        """As the source's."""
        return self.source.sample(self.numbers[index], epoch)

"""What voxelry raises when its input is at fault.

Every message is one line that names the file, the field and what was expected, so that the command
line can print it as it is. Faults in our own code are ordinary Python exceptions, with a traceback.
"""

from __future__ import annotations

from os import PathLike

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FileError",
    "MissingDependencyError",
    "SettingError",
    "VoxelryError",
]


class VoxelryError(Exception):
    """Base of everything a user can cause; `str(error)` is one line."""

    def __init__(self, message: str):
        super().__init__(_printable(" ".join(str(message).split())))


def _printable(text: str) -> str:
    """A text without what would steer a terminal, such as the name of a file may hold."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class FileError(VoxelryError):
    """A file that can't be read or written: `path: fault (hint)`.

    `path` stays on the error as `error.path`.
    """

    def __init__(self, path: str | PathLike[str], fault: str, hint: str = ""):
        self.path = str(path)
        self.fault = fault
        self.hint = hint
        super().__init__(f"{path}: {fault}" + (f" ({hint})" if hint else ""))

    def __reduce__(self) -> tuple[type[FileError], tuple[str, str, str]]:
        """Errors of worker processes come back whole: pickle would give the message alone to `__init__`."""
        return type(self), (self.path, self.fault, self.hint)


class DataError(VoxelryError):
    """Files that can be read but don't fit together: counts, ranks, missing partners."""


class SettingError(VoxelryError, ValueError):
    """A value given to a public function or class that it can't take; also a `ValueError`."""


class ConfigError(VoxelryError):
    """A configuration that names something unknown or leaves something needed out."""


class CheckpointError(VoxelryError):
    """Weights or a bundle that don't fit the model, or were changed since they were written."""


class MissingDependencyError(VoxelryError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""

"""The images that a command is given, as files, folders and lists; nothing heavy is imported to find them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.remote import beside
from voxelry.io import is_image
from voxelry.io.images.image import split_dataset
from voxelry.tasks.options import named_files

__all__ = ["gather_inputs"]


def gather_inputs(inputs: Sequence[Path], options: Mapping[str, Any] | None = None) -> list[Path]:
    """Images among files, folders (one level, or their `volumes/`) and `.txt` lists of paths.

    Args:
        options: of the prediction; some name images in place of an input.

    Raises:
        DataError: nothing to predict.
        FileError: an input does not exist.
        SettingError: an option names images beside the inputs.
    """
    named = named_files(options or {})
    if inputs and named:
        raise SettingError(f"{next(iter(named))}: expected no input beside it")
    given = [*inputs, *(path for paths in named.values() for path in paths)]
    if not given:
        raise DataError("inputs: expected at least one image or folder")
    found = list(dict.fromkeys(path for one in given for path in _expand(one)))
    if not found:
        raise DataError(f"{', '.join(map(str, given))}: no images there")
    return found


def _expand(path: Path) -> Iterator[Path]:
    if not split_dataset(path)[0].exists():
        raise FileError(path, "no such file or folder")
    if path.suffix == ".txt":
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield beside(path, line.strip())
    elif path.is_dir() and not is_image(path):
        folder = path / "volumes" if (path / "volumes").is_dir() else path
        yield from (entry for entry in sorted(folder.iterdir()) if is_image(entry))
    else:
        yield path

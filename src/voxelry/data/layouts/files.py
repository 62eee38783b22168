"""Names of cases and of the files that belong to them, for all layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from voxelry.core.errors import DataError, FileError
from voxelry.data.layouts.case import Case
from voxelry.io import POINT_FORMATS, READERS, is_image
from voxelry.io.meshes import MESH_FORMATS, is_mesh

__all__ = [
    "HDF5_SUFFIXES",
    "SPLIT_NAMES",
    "case_name",
    "check_names",
    "existing",
    "files_by_name",
    "images_in",
    "no_landmarks",
    "own_name",
    "partners",
    "points_by_name",
    "split_folders",
    "visible",
    "with_subsets",
]

SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "test": "test"}
HDF5_SUFFIXES = (".h5", ".hdf5")
_OME_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.zarr")


def split_folders(root: Path) -> list[tuple[str, Path]]:
    """The subfolders that are a split by their names, such as `val`, each after the split it is."""
    return [(split, root / name) for name, split in SPLIT_NAMES.items() if (root / name).is_dir()]


def check_names(cases: Sequence[Case]) -> None:
    """Refuse two cases of one name; expects them sorted.

    Raises:
        DataError: names both images.
    """
    for one, other in itertools.pairwise(cases):
        if one.name == other.name:
            raise DataError(f"{one.image} and {other.image}: two images of one name, {one.name}")


def case_name(path: Path) -> str:
    """File name without the suffixes of a known format: `a/case_1.5T.nii.gz` or `.h5::raw` -> `case_1.5T`."""
    return _stem(Path(str(path).partition("::")[0]).name, (*READERS, *MESH_FORMATS, *_point_suffixes(), *_OME_SUFFIXES))


def own_name(path: Path, suffix: str | None) -> str:
    """The name of a case of a reader of one's own: without its suffix, known or not; `case_name` for None."""
    name = case_name(path)
    if suffix is None or name != path.name:
        return name
    return path.name.removesuffix(suffix) if suffix else path.stem


def _point_suffixes() -> tuple[str, ...]:
    return (*(f".{name}" for name in POINT_FORMATS), ".tsv")


def _stem(name: str, suffixes: Iterable[str]) -> str:
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def visible(folder: Path) -> list[Path]:
    """What lies directly in a folder, by name, without hidden files; nothing where there is no folder."""
    return [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []


def images_in(folder: Path, suffix: str | None = None) -> list[Path]:
    """The images directly in a folder, by name; a DICOM series or a Zarr image is one.

    With a `suffix` they are the files that end so, whatever is in them, see `find.find_cases`.
    """
    if suffix is None:
        return [path for path in visible(folder) if is_image(path)]
    return [path for path in visible(folder) if path.name.endswith(suffix) and (path.is_file() or is_image(path))]


def files_by_name(folder: Path, *, surfaces: bool = False) -> dict[str, Path]:
    """Images of a folder, and surfaces if wanted, by case name; none where there is no folder.

    Raises:
        DataError: two files for one case; names both.
    """
    found = [path for path in visible(folder) if is_image(path) or (surfaces and is_mesh(path))]
    return _by_name((case_name(path), path) for path in found)


def points_by_name(folder: Path) -> dict[str, Path]:
    """Files of points of a folder by case name, as `files_by_name`."""
    suffixes = _point_suffixes()
    return _by_name(
        (_stem(path.name, suffixes), path) for path in visible(folder) if path.name.lower().endswith(suffixes)
    )


def _by_name(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in files:
        if name in found:
            raise DataError(f"{path} and {found[name]}: two files for one case, {name}")
        found[name] = path
    return found


def partners(image: Path, needed: bool, wanted: Sequence[Path]) -> tuple[Path, ...]:
    """All of the wanted files of points, or none of them unless they are needed.

    Raises:
        DataError: one that is needed isn't there.
    """
    missing = [path for path in wanted if not path.is_file()]
    if missing and needed:
        raise no_landmarks(image, missing[0])
    return () if missing else tuple(wanted)


def no_landmarks(image: Path, expected: Path) -> DataError:
    """What is said of an image without the points that it needs."""
    return DataError(f"{image}: no landmarks for this image; expected {expected}")


def existing(path: Path) -> Path:
    """A file or folder that is there.

    Raises:
        FileError: it isn't.
    """
    if not path.exists():
        raise FileError(path, "no such file or folder")
    return path


def with_subsets(cases: Sequence[Case], train: int, validation: int) -> Sequence[Case]:
    """Cases with the split of an original collection: by sorted name the first to train, the next to validate.

    No more cases than that are not the original collection, or a part of it, and stay as they are.
    """
    if len(cases) <= train + validation:
        return cases
    ordered = sorted(cases, key=lambda case: case.name)
    splits = ["train"] * train + ["validation"] * validation + ["test"] * (len(ordered) - train - validation)
    return [replace(case, split=split) for case, split in zip(ordered, splits, strict=True)]

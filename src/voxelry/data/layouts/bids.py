"""The Brain Imaging Data Structure, with label maps among its derivatives.

    sub-01/[ses-1/]anat/sub-01_T1w.nii.gz
    derivatives/NAME/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz    a class per voxel; also beside the image
    derivatives/NAME/desc-aseg_dseg.tsv                          columns index and name: the classes

A case is an image of a subject, without its suffix `.nii.gz`. Labels belong to every image whose name has all entities
of theirs, such as `ses` and `acq`, but those that say what labels they are. Images of one subject are a group, which no
split parts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxelry.core.errors import DataError, FileError
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, images_in, visible
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Bids"]

_LABELS = "dseg"
_OTHERS = (_LABELS, "mask", "probseg", "bold", "dwi", "sbref", "epi", "phase1", "phase2", "magnitude1", "magnitude2")
_OF_LABELS = ("desc", "label", "seg", "atlas", "space", "res", "den", "hemi")


class Bids(Layout):
    """`sub-01/anat/sub-01_T1w.*` with `derivatives/NAME/sub-01/anat/sub-01_dseg.*`."""

    def fits(self, root: Path) -> bool:
        """By an image of a subject."""
        return any(_is_image(path) for path in _files(root))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per image."""
        homes = [root, *(path for path in visible(root / "derivatives") if path.is_dir())]
        labels = [path for home in homes for path in _files(home) if _suffix(path) == _LABELS]
        classes = _classes(homes, labels)
        cases = []
        for image in filter(_is_image, _files(root)):
            found = _labels_of(image, labels)
            subject = _entities(image)["sub"]
            name = case_name(image)
            cases.append(
                Case(name, image, labels=found, instances=found, layout="bids", group=subject, classes=classes)
            )
        return cases


def _files(home: Path) -> Iterator[Path]:
    """Images of all subjects of a dataset, with or without sessions."""
    for subject in (path for path in visible(home) if path.is_dir() and path.name.startswith("sub-")):
        for session in [subject, *(path for path in visible(subject) if path.name.startswith("ses-"))]:
            for kind in (path for path in visible(session) if path.is_dir()):
                yield from (path for path in images_in(kind) if "sub" in _entities(path))


def _is_image(path: Path) -> bool:
    return _suffix(path) not in _OTHERS


def _suffix(path: Path) -> str:
    return case_name(path).rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    """`sub-01_acq-fast_T1w` to `{"sub": "01", "acq": "fast"}`."""
    return {key: value for part in case_name(path).split("_") for key, sign, value in [part.partition("-")] if sign}


def _labels_of(image: Path, labels: Sequence[Path]) -> Path | None:
    """The labels that belong to an image: those that say most about it.

    Raises:
        DataError: several that say equally much.
    """
    own = _entities(image).items()
    fitting: dict[int, list[Path]] = {}
    for path in labels:
        about = {key: value for key, value in _entities(path).items() if key not in _OF_LABELS}
        if about.items() <= own:
            fitting.setdefault(len(about), []).append(path)
    if not fitting:
        return None
    best = fitting[max(fitting)]
    if len(best) > 1:
        raise DataError(
            f"{best[0]} and {best[1]}: two files of labels for {image}; expected one (name the files in a list: "
            "layout list)"
        )
    return best[0]


def _classes(homes: Sequence[Path], labels: Sequence[Path]) -> dict[int, str]:
    """The names of classes of the first table beside labels or at the top of a dataset.

    Raises:
        FileError: a table without the columns index and name.
    """
    tables = [path.parent / f"{case_name(path)}.tsv" for path in labels]
    tables += [path for home in homes for path in visible(home) if path.name.endswith(f"{_LABELS}.tsv")]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        return {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t")
            return {int(row["index"]): row["name"] for row in rows if int(row["index"]) > 0}
    except (KeyError, ValueError, TypeError, UnicodeDecodeError, csv.Error):
        raise FileError(table, "expected the columns index and name, whole numbers in the first") from None

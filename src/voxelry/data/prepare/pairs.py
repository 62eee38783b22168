"""Which image belongs to which labels, in the layouts that segmentation data comes in.

`volumes`: `volumes/NAME.*` with `labels/NAME.*`.
`pairs`: `NAME-image.*` with `NAME-label.*` (or `_image`, `_label`), in the folder or one below.
`decathlon`: `imagesTr/NAME.*` with `labelsTr/NAME.*`.
`nnunet`: `imagesTr/NAME_0000.*` with `labelsTr/NAME.*`; the number is the channel.
`totalsegmentator`: `CASE/ct.*` (or `mri.*`) with `CASE/segmentations/ORGAN.*`, a mask each; `meta.csv` has the split.
`dicom`: folders of one series each, with labels `NAME-label.*` or `NAME.*` beside them or in `labels/`.
`list`: a CSV file with columns `image` and `label`, perhaps `name` and `split`; paths are relative to it.

`dataset.json`, where there is one, names the classes and the modality. An image may be of any format that can be
read, so a DICOM folder may stand for a file.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.data.layouts.find import SPLIT_NAMES, case_name, find_cases
from voxelry.data.segment_names import segment_names
from voxelry.io import is_image

__all__ = ["LAYOUTS", "Pair", "Pairs", "find_pairs"]

LAYOUTS = ("volumes", "pairs", "decathlon", "nnunet", "totalsegmentator", "dicom", "list")

_IMAGE_END = re.compile(r"[-_]image$", re.IGNORECASE)
_CHANNEL_END = re.compile(r"_(\d{4})$")
_SCANS = ("ct", "mri", "mr", "us")
_MODALITIES = {
    "ct": "ct",
    "mri": "mr",
    "mr": "mr",
    "t1": "mr",
    "t2": "mr",
    "flair": "mr",
    "us": "us",
    "ultrasound": "us",
}


@dataclass(frozen=True)
class Pair:
    """One image and its labels.

    Attributes:
        name: unique in a dataset; also the name of what is written.
        image: file, or folder of a DICOM series.
        labels: files with the class that their voxels mean; class 0 stands for a map of classes.
        split: `train`, `validation` or `test` where the data says so.
        modality: `ct`, `mr` or `us` where the data says so.
    """

    name: str
    image: Path
    labels: tuple[tuple[Path, int], ...]
    split: str = ""
    modality: str = ""

    @property
    def files(self) -> list[Path]:
        """Everything that is read."""
        return [self.image, *[path for path, _ in self.labels]]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a folder, sorted by name, and its classes by number, 1 and up (none where they aren't named)."""

    pairs: tuple[Pair, ...]
    classes: dict[int, str]
    layout: str


def find_pairs(
    root: str | Path,
    layout: str = "auto",
    *,
    channel: int = 0,
    organs: Sequence[str] | None = None,
    segments: str | Sequence[str] | None = None,
) -> Pairs:
    """The images with labels under `root`.

    Args:
        root: a folder in one of the layouts above, or the list.
        layout: one of `LAYOUTS`, or `auto`.
        channel: of `nnunet`, which of the files of a case.
        organs: of `totalsegmentator`, the masks to take, in the order of their classes; by default all that any
            case has, by name.
        segments: of `volumes`, those of the labels that are numbered by name.

    Raises:
        FileError: `root` doesn't exist, or a list or `dataset.json` can't be read.
        DataError: no pair, an image without its labels, two of one name; one line naming the file.
        SettingError: an unknown layout.
    """
    root = Path(root)
    if layout not in ("auto", *LAYOUTS):
        raise SettingError(f"layout: expected auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not root.exists():
        raise FileError(root, "no such file or folder")
    chosen = _recognise(root) if layout == "auto" else layout
    names, modality = _description(root / "dataset.json")
    if chosen == "totalsegmentator":
        found, names = _totalsegmentator(root, organs)
    elif chosen == "nnunet":
        found = _nnunet(root, channel)
    elif chosen == "volumes":
        found = _volumes(root, segments)
    else:
        found = _FINDERS[chosen](root)
    if not found:
        raise DataError(f"{root}: no image with labels (layout {chosen}; others are {', '.join(LAYOUTS)})")
    pairs = sorted((replace(pair, modality=pair.modality or modality) for pair in found), key=lambda pair: pair.name)
    for one, other in itertools.pairwise(pairs):
        if one.name == other.name:
            raise DataError(f"{one.image} and {other.image}: two images of one name, {one.name}")
    return Pairs(tuple(pairs), names, chosen)


def _recognise(root: Path) -> str:
    if root.is_file():
        return "list"
    if (root / "volumes").is_dir():
        return "volumes"
    if (root / "imagesTr").is_dir():
        stems = [case_name(path) for path in _images(root / "imagesTr")]
        return "nnunet" if stems and all(_CHANNEL_END.search(stem) for stem in stems) else "decathlon"
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    if any((folder / "segmentations").is_dir() for folder in folders):
        return "totalsegmentator"
    if any(_IMAGE_END.search(case_name(path)) for path in _deep(root)):
        return "pairs"
    if any(is_image(folder) for folder in folders):
        return "dicom"
    raise DataError(
        f"{root}: no layout that is known; expected volumes/ and labels/, NAME-image and NAME-label files, imagesTr/ "
        "and labelsTr/, CASE/ct.nii.gz with CASE/segmentations/, folders of DICOM series, or a CSV list"
    )


def _volumes(root: Path, segments: str | Sequence[str] | None) -> list[Pair]:
    cases = find_cases(root, "volumes")
    # refuses numbers that mean another organ in another case
    segment_names(find_cases(root, "volumes", options={"label_dataset": segments}) if segments else cases)
    return [
        Pair(case.name, case.image, ((_labelled(case.image, case.labels, root / "labels"), 0),), split=case.split)
        for case in cases
    ]


def _paired(root: Path) -> list[Pair]:
    found = []
    everything = list(_deep(root))
    by_stem = {(path.parent, case_name(path).lower()): path for path in everything}
    for image in everything:
        stem = case_name(image)
        end = _IMAGE_END.search(stem)
        if end is None:
            continue
        name = stem[: end.start()]
        wanted = f"{name}{stem[end.start()]}label"
        label = by_stem.get((image.parent, wanted.lower()))
        found.append(Pair(name or image.parent.name, image, ((_labelled(image, label, image.parent, wanted), 0),)))
    return found


def _decathlon(root: Path) -> list[Pair]:
    labels = {case_name(path): path for path in _images(_folder(root / "labelsTr"))}
    images = _images(_folder(root / "imagesTr"))
    return [
        Pair(case_name(path), path, ((_labelled(path, labels.get(case_name(path)), root / "labelsTr"), 0),))
        for path in images
    ]


def _nnunet(root: Path, channel: int) -> list[Pair]:
    labels = {case_name(path): path for path in _images(_folder(root / "labelsTr"))}
    channels: dict[str, set[int]] = {}
    found = []
    for image in _images(_folder(root / "imagesTr")):
        end = _CHANNEL_END.search(case_name(image))
        if end is None:
            raise DataError(f"{image}: expected a name that ends with its channel, such as _0000 (layout nnunet)")
        name = case_name(image)[: end.start()]
        channels.setdefault(name, set()).add(int(end[1]))
        if int(end[1]) == channel:
            found.append(Pair(name, image, ((_labelled(image, labels.get(name), root / "labelsTr", name), 0),)))
    for name, present in channels.items():
        if channel not in present:
            raise DataError(f"{root / 'imagesTr' / name}: no channel {channel}; it has {sorted(present)}")
    return found


def _totalsegmentator(root: Path, organs: Sequence[str] | None) -> tuple[list[Pair], dict[int, str]]:
    folders = [path for path in sorted(root.iterdir()) if (path / "segmentations").is_dir()]
    masks = {folder: {case_name(path): path for path in _images(folder / "segmentations")} for folder in folders}
    every = sorted({name for found in masks.values() for name in found})
    for organ in organs or ():
        if organ not in every:
            raise DataError(f"{root}: no mask of {organ!r} in any segmentations/; there are {', '.join(every[:20])}")
    names = dict(enumerate(organs or every, start=1))
    splits = _splits(root / "meta.csv")
    found = []
    for folder in folders:
        scans = {case_name(path): path for path in _images(folder)}
        scan = next((kind for kind in _SCANS if kind in scans), None)
        if scan is None:
            raise DataError(f"{folder}: no image; expected ct.nii.gz or mri.nii.gz beside segmentations/")
        labels = tuple((masks[folder][name], number) for number, name in names.items() if name in masks[folder])
        if not labels:
            raise DataError(f"{folder / 'segmentations'}: no masks of {', '.join(list(names.values())[:10])}")
        found.append(Pair(folder.name, scans[scan], labels, splits.get(folder.name, ""), _MODALITIES[scan]))
    return found, names


def _splits(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",")
    known = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    return {row.get("image_id") or "": known.get(row.get("split") or "", "") for row in rows}


def _dicom(root: Path) -> list[Pair]:
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and is_image(path)):
        name = folder.name
        places = [(root, f"{name}-label"), (root, f"{name}_label"), (root, name), (root / "labels", name)]
        options = [path for parent, stem in places for path in _images(parent) if case_name(path) == stem]
        label = next((path for path in options if path != folder), None)
        found.append(Pair(name, folder, ((_labelled(folder, label, root, f"{name}-label"), 0),)))
    return found


def _listed(path: Path) -> list[Pair]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as table:
            rows = list(csv.DictReader(table))
    except (UnicodeDecodeError, csv.Error):
        raise FileError(path, "is no list; expected a folder, or a CSV file with columns image, label") from None
    uneven = next((number for number, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if uneven is not None:
        raise FileError(path, f"line {uneven}: another number of cells than the header")
    if not rows or not {"image", "label"} <= set(rows[0]):
        raise FileError(path, "expected columns image and label (perhaps name and split), and at least one row")
    found = []
    for number, row in enumerate(rows, start=2):
        files = [path.parent / str(row[column] or "") for column in ("image", "label")]
        for column, file in zip(("image", "label"), files, strict=True):
            if not row[column] or not file.exists():
                raise FileError(path, f"line {number}: no such {column}: {row[column] or 'empty'}")
        name = row.get("name") or case_name(files[0])
        split = row.get("split") or ""
        if split and split not in SPLIT_NAMES:
            raise FileError(path, f"line {number}: split: expected one of {', '.join(SPLIT_NAMES)}, got {split!r}")
        found.append(Pair(name, files[0], ((files[1], 0),), split=SPLIT_NAMES.get(split, "")))
    return found


_FINDERS: dict[str, Callable[[Path], list[Pair]]] = {
    "pairs": _paired,
    "decathlon": _decathlon,
    "dicom": _dicom,
    "list": _listed,
}


def _description(path: Path) -> tuple[dict[int, str], str]:
    """Names of the classes and the modality from a `dataset.json` of the decathlon or of nnU-Net."""
    if not path.is_file():
        return {}, ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels: dict[Any, Any] = content.get("labels", {})
        names = {}
        for key, value in labels.items():  # {"1": "liver"}, or {"liver": 1} with lists for regions
            name, number = (value, key) if str(key).isdigit() else (key, value)
            if not isinstance(number, list) and int(number) > 0:
                names[int(number)] = str(name)
        channels = content.get("channel_names") or content.get("modality") or {}
        modality = str(channels.get("0", "")).lower()
    except (ValueError, AttributeError, TypeError) as error:
        raise FileError(path, f"isn't a dataset.json with labels: {error}") from None
    return dict(sorted(names.items())), _MODALITIES.get(modality, "")


def _labelled(image: Path, label: Path | None, folder: Path, stem: str = "") -> Path:
    if label is None:
        raise DataError(f"{image}: no labels for this image; expected {folder / (stem or case_name(image))}.*")
    return label


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileError(path, "no such folder")
    return path


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.name[0] != "." and is_image(path)]


def _deep(root: Path) -> Iterable[Path]:
    """Images of a folder and of those one below; a DICOM folder is an image."""
    for path in sorted(root.iterdir()):
        if path.name[0] == ".":
            continue
        if is_image(path):
            yield path
        elif path.is_dir():
            yield from _images(path)

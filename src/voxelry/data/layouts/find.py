"""Which files belong together: the folder layouts, read into cases.

`volumes` (any reader's format, 2-D or 3-D):
    `volumes/NAME.nii.gz`, `landmarks/NAME.txt` (or .csv, .json, .fcsv, .mrk.json, .pts), and where there are
    any `labels/NAME.*` (a class per voxel) and `instances/NAME.*` (an id per voxel). Files belong together
    by name, without their suffixes.
`chest`:
    `pngs/NAME.png`, `labels/NAME.txt` (first line the count, then `x y` in [0, 1] a line). Nine images of the
    collection are left out, as its authors do.
`hand`:
    `jpg/NAME.jpg`, `labels/all.csv` (a row `id,x0,y0,x1,y1,...` per image, pixels). Where the rows are at
    hand, the spacing is set so that points 0 and 4, the wrist, are 50 mm apart (Payer et al. 2019, Medical
    Image Analysis 54, 207-219), as these images have no scale of their own.
`cephalometric`:
    `jpg/NAME.jpg`, `400_junior/NAME.txt`, `400_senior/NAME.txt` (`x,y` a line, pixels of 0.1 mm; what
    follows the points is ignored). A point is the mean of the two observers.
`hdf5`:
    `NAME.h5` with a dataset `raw` and, where there is one, `label` (an instance id per voxel); other names by
    `options={"dataset": ..., "label_dataset": ...}`.
`images`:
    a file, a folder of images, or a pattern such as `scans/*.mha`. `NAME_masks.*` and `NAME_cp_masks.*` beside
    `NAME.*` are its instances, as Cellpose writes them.

Each of them may also lie in subfolders `train`, `validation` (or `val`) and `test`, which are then the split.
The three originals come with the split their authors use: by sorted name, 195 / 34 / rest (chest),
550 / 59 / rest (hand) and 130 / 20 / rest (cephalometric).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.data.layouts.case import Case
from voxelry.io import IMAGE_OPTIONS, POINT_FORMATS, READERS, is_image
from voxelry.io.images.hdf5 import dataset_names
from voxelry.io.points.landmarks import POINT_OPTIONS
from voxelry.io.points.pixels import observer_points, pixel_row, pixel_table

__all__ = [
    "LAYOUTS",
    "SPLIT_NAMES",
    "Case",
    "case_name",
    "check_names",
    "files_by_name",
    "find_cases",
    "image_options",
    "images_in",
    "split_folders",
]

LAYOUTS = ("volumes", "chest", "hand", "cephalometric", "hdf5", "images")

_OME_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.zarr")
_HDF5_SUFFIXES = (".h5", ".hdf5")
_HDF5_DATASETS = {"dataset": "raw", "label_dataset": "label"}

SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "test": "test"}
_ORIGINAL_SUBSETS = {"chest": (195, 34), "hand": (550, 59), "cephalometric": (130, 20)}
_CHEST_LEFT_OUT = {f"CHNCXR_{number:04d}_0" for number in (59, 178, 228, 267, 276, 285, 295, 303, 310)}
_MASK_ENDS = ("_cp_masks", "_masks")
_WRIST_MM = 50.0
_CEPHALOMETRIC_SPACING = 0.1


def find_cases(
    root: str | PathLike[str],
    layout: str = "auto",
    *,
    need_landmarks: bool = False,
    options: Mapping[str, Any] | None = None,
    point_options: Mapping[str, Any] | None = None,
    suffix: str | None = None,
) -> list[Case]:
    """The cases under `root`, sorted by name.

    Args:
        root: a folder in one of the layouts above, an image, or a pattern of images.
        layout: one of `LAYOUTS`, or `"auto"` to tell by the subfolders.
        need_landmarks: whether a case without points is an error; otherwise points are taken where there are any.
        options, point_options: for every case, as in `Case`; `options["label_dataset"]` names the labels' dataset in
            HDF5 files, or segments (a list, or between commas), which are numbered in that order.
        suffix: for a reader of one's own: images are the files that end so, `""` for all of them; None for those of
            a format that we read. Only the layouts `volumes` and `images` have it.

    Raises:
        DataError: no image, two of one name, or an image without its points; the message names the file.
        FileError: `root` doesn't exist, or a table of points can't be read.
        SettingError: an unknown layout or option.
    """
    if layout not in ("auto", *LAYOUTS):
        raise SettingError(f"layout: expected auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    root = Path(root)
    subfolders = split_folders(root)
    if subfolders and not _is_own_layout(root):
        cases = [
            replace(case, split=split)
            for split, folder in subfolders
            for case in find_cases(
                folder,
                layout,
                need_landmarks=need_landmarks,
                options=options,
                point_options=point_options,
                suffix=suffix,
            )
        ]
    else:
        chosen = _recognise(root) if layout == "auto" else layout
        if suffix is not None:
            chosen = _own_layout(chosen)
        given = dict(options or {})
        names = {key: str(given.pop(key, None) or usual) for key, usual in _HDF5_DATASETS.items() if chosen == "hdf5"}
        segments = given.pop("label_dataset", None)
        _check_options("options", given, IMAGE_OPTIONS)
        _check_options("point_options", point_options or {}, POINT_OPTIONS)
        if suffix is not None:
            cases = (_volumes if chosen == "volumes" else _plain)(root, need_landmarks, suffix)
        else:
            cases = _hdf5(root, need_landmarks, **names) if names else _FINDERS[chosen](root, need_landmarks)
        cases = [
            replace(case, options={**case.options, **given}, point_options=dict(point_options or {})) for case in cases
        ]
        cases = [_of_segments(case, segments) for case in cases] if segments is not None else cases
        cases = _with_subsets(cases, chosen)
    if not cases:
        kind = "no image in a format that can be read" if suffix is None else f"no file *{suffix}"
        raise DataError(f"{root}: {kind} (layout {layout})")
    cases.sort(key=lambda case: case.name)
    check_names(cases)
    return cases


def _own_layout(chosen: str) -> str:
    """Where a reader of one's own finds its files: in `volumes/`, or in the folder itself.

    Raises:
        SettingError: a layout that says itself what its files are.
    """
    if chosen not in ("volumes", "images", "hdf5"):
        raise SettingError(f"layout: expected volumes or images with a reader of one's own, got {chosen}")
    return "volumes" if chosen == "volumes" else "images"


def _of_segments(case: Case, segments: Any) -> Case:
    """A case with some of the datasets or segments of its files of labels, named as `open_image` takes them."""
    names = segments if isinstance(segments, str) else ",".join(map(str, segments))
    chosen = {use: Path(f"{path}::{names}") for use in ("labels", "instances") if (path := getattr(case, use))}
    return replace(case, **chosen)  # type: ignore[arg-type]  # both are paths


def _check_options(name: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for option in given:
        if option not in known:
            raise SettingError(f"{name}: expected some of {', '.join(known)}, got {option!r}")


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
    return _stem(Path(str(path).partition("::")[0]).name, (*READERS, *_point_suffixes(), *_OME_SUFFIXES))


def _point_suffixes() -> tuple[str, ...]:
    return (*(f".{name}" for name in POINT_FORMATS), ".tsv")


def _stem(name: str, suffixes: Iterable[str]) -> str:
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _is_own_layout(root: Path) -> bool:
    return any((root / name).is_dir() for name in ("volumes", "pngs", "jpg"))


def _recognise(root: Path) -> str:
    if (root / "volumes").is_dir():
        return "volumes"
    if (root / "pngs").is_dir():
        return "chest"
    if (root / "jpg").is_dir():
        return "cephalometric" if (root / "400_junior").is_dir() or (root / "400_senior").is_dir() else "hand"
    if root.is_dir() and not is_image(root):
        files = [path for path in root.iterdir() if path.is_file() and path.name[0] != "."]
        if any(path.suffix in _HDF5_SUFFIXES for path in files):
            return "hdf5"
    return "images"


def _volumes(root: Path, need_landmarks: bool, suffix: str | None = None) -> list[Case]:
    points = files_by_name(root / "landmarks", _point_suffixes())
    labels = files_by_name(root / "labels", None)
    instances = files_by_name(root / "instances", None)
    cases = []
    for image in images_in(_existing(root / "volumes"), suffix):
        name = case_name(image) if suffix is None else _own_name(image, suffix)
        if need_landmarks and name not in points:
            raise _no_partner(image, root / "landmarks" / f"{name}.txt")
        cases.append(
            Case(
                name=name,
                image=image,
                landmarks=(points[name],) if name in points else (),
                labels=labels.get(name),
                instances=instances.get(name),
            )
        )
    return cases


def _chest(root: Path, need_landmarks: bool) -> list[Case]:
    cases = []
    for image in images_in(_existing(root / "pngs")):
        if case_name(image) in _CHEST_LEFT_OUT:
            continue
        found = _partners(image, need_landmarks, [root / "labels" / f"{case_name(image)}.txt"])
        cases.append(Case(case_name(image), image, found, layout="chest"))
    return cases


def _hand(root: Path, need_landmarks: bool) -> list[Case]:
    table = root / "labels" / "all.csv"
    known = table.is_file()
    if need_landmarks and not known:
        raise FileError(table, "no such file; the hand layout has its points there")
    rows = pixel_table(table) if known else {}
    cases = []
    for image in images_in(_existing(root / "jpg")):
        name = case_name(image)
        points = pixel_row(rows, name)
        if need_landmarks and points is None:
            raise DataError(f"{image}: no row {name} in {table}")
        options = {}
        if points is not None and len(points) > 4:
            wrist = float(np.linalg.norm(points[0] - points[4]))
            options = {"spacing": _WRIST_MM / wrist} if wrist > 0 else {}
        cases.append(Case(name, image, () if points is None else (table,), layout="hand", options=options))
    return cases


def _cephalometric(root: Path, need_landmarks: bool) -> list[Case]:
    cases = []
    for image in images_in(_existing(root / "jpg")):
        name = case_name(image)
        wanted = [root / folder / f"{name}.txt" for folder in ("400_junior", "400_senior")]
        found = _partners(image, need_landmarks, wanted)
        if found:
            observer_points(found)  # a difference between the observers' counts shows before training does
        options = {"spacing": _CEPHALOMETRIC_SPACING}
        cases.append(Case(name, image, found, layout="cephalometric", options=options))
    return cases


def _hdf5(root: Path, need_landmarks: bool, *, dataset: str, label_dataset: str) -> list[Case]:
    paths = [root] if root.is_file() else [p for p in sorted(_existing(root).iterdir()) if p.suffix in _HDF5_SUFFIXES]
    if need_landmarks and paths:
        raise DataError(f"{paths[0]}: an HDF5 file has no landmarks; expected folders volumes and landmarks")
    cases = []
    for path in paths:
        held = dataset_names(path)
        labelled = label_dataset.strip("/") in held
        # a file of one dataset is that image, whatever it is called
        options = {"dataset": dataset} if len(held) > 1 else {}
        instances = Path(f"{path}::{label_dataset}") if labelled else None
        cases.append(Case(case_name(path), path, instances=instances, layout="hdf5", options=options))
    return cases


def image_options(path: Path, dataset: str | None = None) -> dict[str, Any]:
    """What `open_image` must be told of a single image: of an HDF5 file with several, which one by its usual name.

    Args:
        dataset: the usual name; `raw`, as in the layout `hdf5`, if not given.

    Raises:
        FileError: not HDF5.
    """
    if path.suffix.lower() not in _HDF5_SUFFIXES or not path.is_file():
        return {}
    usual = (dataset or _HDF5_DATASETS["dataset"]).strip("/")
    held = dataset_names(path)
    return {"dataset": usual} if len(held) > 1 and usual in held else {}


def _plain(root: Path, need_landmarks: bool, suffix: str | None = None) -> list[Case]:
    options: dict[str, str] = {}
    if not root.exists() and any(sign in str(root) for sign in "*?["):
        pattern = root.relative_to(root.anchor) if root.anchor else root
        images = [path for path in sorted(Path(root.anchor).glob(str(pattern))) if is_image(path)]
    elif not root.exists() and "::" in str(root):  # an image inside of an HDF5 file
        file, _, inside = str(root).partition("::")
        images, options = [_existing(Path(file))], {"dataset": inside}
    elif _existing(root).is_dir() and (suffix is not None or not is_image(root)):
        images = images_in(root, suffix)
    else:
        images = [root]
    if need_landmarks:
        raise DataError(f"{root}: images alone, without landmarks; expected folders volumes and landmarks")
    names = [case_name(image) if suffix is None else _own_name(image, suffix) for image in images]
    masks = _masks(dict(zip(names, images, strict=True))) if suffix is None else {}
    return [
        Case(name, image, instances=masks.get(name), layout="images", options=options)
        for name, image in zip(names, images, strict=True)
        if image not in masks.values()
    ]


def _masks(images: Mapping[str, Path]) -> dict[str, Path]:
    """Files among the images that are the instances of another, as Cellpose names them, by the other's name.

    Raises:
        DataError: two of one image.
    """
    found: dict[str, Path] = {}
    for name, path in images.items():
        owner = name.removesuffix(next((end for end in _MASK_ENDS if name.endswith(end)), ""))
        if owner != name and owner in images:
            if owner in found:
                raise DataError(f"{path} and {found[owner]}: two files of masks for one image, {owner}")
            found[owner] = path
    return found


_FINDERS: dict[str, Callable[[Path, bool], list[Case]]] = {
    "volumes": _volumes,
    "chest": _chest,
    "hand": _hand,
    "cephalometric": _cephalometric,
    "images": _plain,
}


def images_in(folder: Path, suffix: str | None = None) -> list[Path]:
    """The images directly in a folder, by name; a DICOM series or a Zarr image is one.

    With a `suffix` they are the files that end so, whatever is in them, see `find_cases`.
    """
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if suffix is None:
        return [path for path in shown if is_image(path)]
    return [path for path in shown if path.name.endswith(suffix) and (path.is_file() or is_image(path))]


def _own_name(path: Path, suffix: str) -> str:
    """The name of a file that only a reader of one's own knows: without its suffix, known or not."""
    name = case_name(path)
    if name != path.name:
        return name
    return path.name.removesuffix(suffix) if suffix else path.stem


def files_by_name(folder: Path, suffixes: tuple[str, ...] | None = None) -> dict[str, Path]:
    """Files of a folder by case name: those with the suffixes, or the images; none where there is no folder.

    Raises:
        DataError: two files for one case; names both.
    """
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    if suffixes is None:
        paths = images_in(folder)
    else:
        paths = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(suffixes) and p.name[0] != "."]
    for path in paths:
        name = case_name(path) if suffixes is None else _stem(path.name, suffixes)
        if name in found:
            raise DataError(f"{path} and {found[name]}: two files for one case, {name}")
        found[name] = path
    return found


def _partners(image: Path, needed: bool, wanted: list[Path]) -> tuple[Path, ...]:
    """All of the wanted files, or none of them unless they are needed."""
    missing = [path for path in wanted if not path.is_file()]
    if missing and needed:
        raise _no_partner(image, missing[0])
    return () if missing else tuple(wanted)


def _no_partner(image: Path, expected: Path) -> DataError:
    return DataError(f"{image}: no landmarks for this image; expected {expected}")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileError(path, "no such file or folder")
    return path


def _with_subsets(cases: list[Case], layout: str) -> list[Case]:
    if layout not in _ORIGINAL_SUBSETS:
        return cases
    train, validation = _ORIGINAL_SUBSETS[layout]
    if len(cases) <= train + validation:  # not the original collection, or a part of it
        return cases
    ordered = sorted(cases, key=lambda case: case.name)
    splits = ["train"] * train + ["validation"] * validation + ["test"] * (len(ordered) - train - validation)
    return [replace(case, split=split) for case, split in zip(ordered, splits, strict=True)]

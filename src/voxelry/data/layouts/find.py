"""The cases of a folder, whatever its layout; each is told of in its own file beside this one, see `layout.LAYOUTS`.

Any layout may also lie in subfolders `train`, `validation` (or `val`) and `test`, which are then the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.remote import as_path
from voxelry.data.layouts.case import Case, PairCase
from voxelry.data.layouts.files import check_names, images_in, split_folders, visible
from voxelry.data.layouts.layout import LAYOUTS, Wanted
from voxelry.io import IMAGE_OPTIONS, POINT_OPTIONS

__all__ = ["find_cases", "find_pairs", "layouts_of", "recognise"]

_WHOLE = ("volumes", "pngs", "jpg", "imagesTr", "A")  # a folder beside these is no split, whatever its name


def layouts_of(*, pairs: bool) -> list[str]:
    """The names of the layouts of pairs, or of all others."""
    return [name for name, layout in LAYOUTS.items() if layout.pairs == pairs]


def recognise(root: Path, *, pairs: bool | None = None) -> str:
    """The layout that a folder or file looks like: the first one in the order of `LAYOUTS`.

    Args:
        pairs: whether pairs are looked for; None: whatever the folder is clearly.

    Raises:
        DataError: no layout of pairs.
    """
    for certain in (True, False):
        for name, layout in LAYOUTS.items():
            asked = (certain or not layout.pairs) if pairs is None else layout.pairs == pairs
            if asked and layout.certain == certain and layout().fits(root):
                return name
    raise DataError(f"{root}: no pairs of images; expected folders A and B, a folder per contrast, or a table")


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
        root: a folder in one of the layouts, an image, or a pattern of images.
        layout: one of `LAYOUTS`, or `"auto"` to tell by what is there.
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
    _check_option("layout", layout, ["auto", *layouts_of(pairs=False)], "auto or one of")
    given, about_points = dict(options or {}), dict(point_options or {})
    for name in given:
        _check_option("options", name, [*IMAGE_OPTIONS, "label_dataset"], "some of")
    for name in about_points:
        _check_option("point_options", name, POINT_OPTIONS, "some of")
    wanted = Wanted(landmarks=need_landmarks, suffix=suffix, options=given)
    cases = []
    for split, folder in _parts(as_path(root)):
        chosen = recognise(folder, pairs=False) if layout == "auto" else layout
        found = list(_cases(folder, chosen if suffix is None else _own_layout(chosen), wanted))
        if not found:
            lacks = "no image in a format that can be read" if suffix is None else f"no file *{suffix}"
            raise DataError(f"{folder}: {lacks} (layout {layout}){_deeper(folder)}")
        cases += [replace(case, split=split or case.split, point_options=about_points) for case in found]
    cases.sort(key=lambda case: case.name)
    check_names(cases)
    return cases


def _deeper(folder: Path) -> str:
    """What is said of images that lie one folder deeper than they are looked for."""
    places = [place for place in visible(folder) if place.is_dir() and images_in(place)] if folder.is_dir() else []
    if not places:
        return ""
    names = ", ".join(place.name for place in places[:3]) + ", ..." * (len(places) > 3)
    if [place.name for place in places] == ["A", "B"]:
        return "; A and B are pairs of images, for task=translate with data=pairs"
    return (
        f"; there are images in its folders {names}: expected them in one folder, or in a layout of docs/data.md: "
        "volumes with labels (a class per voxel), instances (an id per voxel) or landmarks, or a list, cases.csv"
    )


def find_pairs(
    root: str | PathLike[str],
    layout: str = "auto",
    *,
    target: str | None = None,
    conditions: Sequence[str] | None = None,
    need_target: bool = True,
    options: Mapping[str, Any] | None = None,
    unpaired: list[tuple[Path, str]] | None = None,
) -> list[PairCase]:
    """The pairs under `root`, sorted by name.

    Args:
        root: a folder in one of the layouts of pairs, or a table.
        layout: one of `layouts_of(pairs=True)`, or `"auto"` to tell by what is there.
        target: of `contrasts`, the folder that is the target.
        conditions: of `contrasts` and `csv`, the folders or columns that are given, in this order; None: all others.
        need_target: whether a condition without its target is an error; otherwise such cases are kept.
        options: for the reader of every file, as in `Case`.
        unpaired: a list that files without a partner are added to, each with what it lacks; None: they are an error.

    Raises:
        DataError: no pair, files without a partner, two of one name; the message names the file.
        FileError: `root` doesn't exist, or the table can't be read.
        SettingError: an unknown layout, or a folder or column that isn't there.
    """
    _check_option("layout", layout, ["auto", *layouts_of(pairs=True)], "auto or one of")
    root = as_path(root)
    if not root.exists():
        raise FileError(root, "no such file or folder")
    wanted = Wanted(target=target, conditions=conditions, need_target=need_target, unpaired=unpaired)
    cases = [
        replace(cast("PairCase", case), split=split or case.split, options=dict(options or {}))
        for split, folder in _parts(root)
        for case in LAYOUTS[recognise(folder, pairs=True) if layout == "auto" else layout]().cases(folder, wanted)
    ]
    if not cases:
        raise DataError(f"{root}: no pairs of images (layout {layout})")
    cases.sort(key=lambda case: case.name)
    check_names(cases)
    return cases


def _parts(root: Path) -> list[tuple[str, Path]]:
    """The folder itself, or its subfolders that are a split, each after its name."""
    whole = any((root / name).is_dir() for name in _WHOLE)
    return [("", root)] if whole else split_folders(root) or [("", root)]


def _cases(root: Path, name: str, wanted: Wanted) -> Iterator[Case]:
    """The cases of a layout with all that their images are to be read with."""
    layout = LAYOUTS[name]
    given = {key: value for key, value in wanted.options.items() if key not in layout.answers}
    segments = given.pop("label_dataset", None)
    for case in layout().cases(root, wanted):
        case = replace(case, options={**case.options, **given})
        yield case if segments is None else _of_segments(case, segments)


def _of_segments(case: Case, segments: Any) -> Case:
    """A case with some of the datasets or segments of its files of labels, named as `open_image` takes them.

    These have new numbers, which what the folder says of its classes doesn't hold for.
    """
    names = segments if isinstance(segments, str) else ",".join(map(str, segments))
    chosen = {use: as_path(f"{path}::{names}") for use in ("labels", "instances") if (path := getattr(case, use))}
    return replace(case, classes={}, **chosen)  # type: ignore[arg-type]  # both are paths


def _own_layout(name: str) -> str:
    """Where a reader of one's own finds its files: in `volumes/`, or in the folder itself.

    Raises:
        SettingError: a layout that says itself what its files are.
    """
    found = LAYOUTS[name].own_reader
    if found is None:
        raise SettingError(f"layout: expected volumes or images with a reader of one's own, got {name}")
    return found


def _check_option(name: str, value: str, known: Sequence[str], word: str) -> None:
    if value not in known:
        listed = ", ".join(one for one in known if one != "auto")
        raise SettingError(f"{name}: expected {word} {listed}, got {value!r}")

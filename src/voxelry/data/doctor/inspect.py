"""What is in a folder of images and points, and what is wrong with it.

`inspect` reads every image once, one at a time, and never raises for a file's fault: that is a finding.
Severities: `error`, training would stop, or learn from points that lie elsewhere than they were meant to; `warning`,
it would run, but something is probably not meant so; `info`, worth knowing and handled by the program. What a task
asks of its cases are its `Demands`; without them the folder is held to what it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import DataError, FileError, VoxelryError
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.dataset import NEEDS
from voxelry.data.demands import GREY_AND_COLOUR, Demands, in_pieces, lacking, no_foreground
from voxelry.data.doctor.diagnosis import CaseRow, Diagnosis, Finding, render
from voxelry.data.doctor.landmarks import PlacedPoints, Suspicion, background_test, cohort_test, outside_test, readings
from voxelry.data.label_grid import Reference, class_numbers, open_labels, whole_numbers
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.find import find_cases
from voxelry.data.layouts.layout import LAYOUTS
from voxelry.data.layouts.points import read_case_landmarks
from voxelry.data.segment_names import segment_names
from voxelry.data.splits import split_cases
from voxelry.data.windows import slabs
from voxelry.io import ImageFile, is_image, open_image
from voxelry.io.points.landmarks import landmark_format

__all__ = [
    "CaseRow",
    "Diagnosis",
    "Finding",
    "compare_images",
    "find_unsplit",
    "inspect",
    "inspect_case",
    "render",
    "without_path",
]

_SLAB_BYTES = 256 << 20  # pixels of an image that are in memory at one time
_SLABS = 32  # of a larger image so many are looked at, spread evenly
_SPACING_TOLERANCE = 0.01  # relative
_ENOUGH = 10_000  # voxels, to tell whether neighbours agree
# fmt: off
_COMPANIONS = (".raw", ".zraw", ".img", ".img.gz", ".brik", ".brik.gz", ".rec", ".bval", ".bvec",
               ".json", ".md", ".txt")
# fmt: on
_PATIENT_AXES = ("left-right", "posterior-anterior", "inferior-superior")
_PARTNER_FOLDERS = ("landmarks", "labels", "instances", "400_junior", "400_senior", "labelsTr", "instancesTr")


@dataclass
class CaseRead:
    """What is kept of a case after its pixels are gone."""

    case: Case
    space: Space
    row: CaseRow
    names: tuple[str, ...] = ()
    placed: PlacedPoints | None = None
    intensities: dict[str, NDArray[np.float64]] | None = None


def inspect(
    path: str | PathLike[str],
    *,
    need_landmarks: bool | None = None,
    demands: Demands | None = None,
    layout: str = "auto",
    options: dict[str, Any] | None = None,
    point_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Look at every image, its points and its label maps.

    Args:
        path: an image, a folder of images, or a dataset in one of the layouts of `voxelry.data.layouts`.
        need_landmarks: whether an image without points is an error; None: if any image has some.
        demands: of the task that is to be trained on it, which decide about landmarks, too; None: of none.
        layout, options, point_options: as in `find_cases`.
        progress: called with the number of cases done and of all, before each and at the end.

    Raises:
        FileError: `path` does not exist.
        SettingError: an unknown layout.
    """
    root = as_path(path)
    found = Diagnosis(str(root))
    if not root.exists() and not any(sign in str(root) for sign in "*?["):
        raise FileError(root, "no such file or folder")
    try:
        cases = find_cases(root, layout, options=options, point_options=point_options)
    except VoxelryError as error:
        if isinstance(error, ValueError):  # a wrong setting is no fault of the data
            raise
        found.add("error", getattr(error, "path", root), without_path(error))
        return found
    _find_orphans(found, cases)
    expected = any(case.landmarks for case in cases) if need_landmarks is None else need_landmarks
    if demands is not None:
        expected = demands.required == "landmarks"
        find_unsplit(found, cases, demands.fractions)
    reads = []
    for number, case in enumerate(cases):
        if progress is not None:
            progress(number, len(cases))
        if expected and not case.landmarks:
            found.add("error", case.image, "has no landmarks")
        read = inspect_case(found, case, demands)
        if read is not None:
            reads.append(read)
    if progress is not None:
        progress(len(cases), len(cases))
    _find_gaps(found, cases, demands)
    if demands is None or "labels" in demands.needs:
        _compare_segments(found, cases)
    compare_images(found, reads)
    _compare_points(found, [read for read in reads if read.placed is not None])
    found.sort()
    return found


def inspect_case(found: Diagnosis, case: Case, demands: Demands | None = None) -> CaseRead | None:
    """Read one case, add its row and what is wrong with it; None if its header can't be read."""
    needs = NEEDS if demands is None else demands.needs
    row = CaseRow(case.name, str(case.image))
    found.rows.append(row)
    try:
        image = open_image(case.image, **case.options)
    except VoxelryError as error:
        found.add("error", case.image, without_path(error))
        return None
    space = image.space
    row.channels, row.shape, row.spacing = image.channels, space.shape, space.spacing
    row.axes, row.dtype = space.orientation, str(image.dtype)
    _inspect_labels(found, case, needs, () if demands is None else demands.shown)
    read = CaseRead(case, space, row)
    if case.landmarks and "landmarks" in needs:
        try:
            index, read.names = read_case_landmarks(case, space)
        except VoxelryError as error:
            found.add("error", getattr(error, "path", case.landmarks[0]), without_path(error))
        else:
            present = np.isfinite(index).all(axis=1)
            row.points, row.absent = int(present.sum()), int((~present).sum())
            on_grid, normalised = _kind_of_points(case)
            file = f"{case.landmarks[0]}" + (f", row {case.name}" if case.layout == "hand" else "")
            read.placed = PlacedPoints(file, index, space, on_grid, normalised)
    probes = {} if read.placed is None else readings(read.placed)
    pixels = _inspect_pixels(found, image, row, probes)
    read.intensities = _judged(found, image, row, pixels, strict=demands is not None and demands.contrast)
    return read


@dataclass
class _Pixels:
    """What was seen of an image's pixels.

    Attributes:
        not_finite: how many are NaN or infinite, as the networks' float32.
        lows, highs: range of the finite ones, per channel; crossed without any.
        likeness: correlation of neighbours, of an image of single bytes.
        values: the mean over the channels at some points, by the name of their reading.
        whole: whether all of them were looked at.
    """

    not_finite: int
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    likeness: float | None
    values: dict[str, NDArray[np.float64]]
    whole: bool = True


def _inspect_pixels(
    found: Diagnosis, image: ImageFile, row: CaseRow, probes: dict[str, NDArray[np.float64]]
) -> _Pixels | None:
    """Range, NaN and infinities, a slab at a time; None where they can't be read."""
    shape = image.space.shape
    values = {name: np.full(len(index), np.nan) for name, index in probes.items()}
    seen = _Pixels(0, np.full(image.channels, np.inf), np.full(image.channels, -np.inf), None, values)
    try:
        windows, seen.whole = _slabs(found, image.path, shape, image.dtype.itemsize * image.channels)
        for window in windows:
            slab = image.read(window)
            if seen.likeness is None and slab.itemsize == 1 and slab.size >= _ENOUGH:
                seen.likeness = _neighbour_correlation(slab)
            _add_range(seen, slab)
            _add_values(seen, slab, window[0], probes, image.space)
    except VoxelryError as error:
        found.add("error", image.path, without_path(error))
        return None
    return seen


def _slabs(
    found: Diagnosis, path: Path, shape: Sequence[int], voxel_bytes: int
) -> tuple[list[tuple[slice, ...]], bool]:
    """Windows of an image that fit into memory, of a very large one as many as are looked at; whether they are all."""
    windows = list(slabs(shape, voxel_bytes, _SLAB_BYTES))
    if len(windows) <= _SLABS:
        return windows, True
    total, seen = (count * _SLAB_BYTES / 1e9 for count in (len(windows), _SLABS))
    found.add("info", path, f"of about {total:.0f} GB of values {seen:.0f} GB are looked at, spread evenly")
    return [windows[place] for place in np.linspace(0, len(windows) - 1, _SLABS).astype(int)], False


def _add_range(seen: _Pixels, slab: NDArray[Any]) -> None:
    """Take a slab `(C, *window)` into the range and the count of what is not finite."""
    finite = np.ones(slab.shape, bool)
    if slab.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(slab.astype(np.float32, copy=False))
        seen.not_finite += int(finite.size - np.count_nonzero(finite))
    for channel, (pixels, valid) in enumerate(zip(slab, finite, strict=True)):
        part = pixels if valid.all() else pixels[valid]
        if part.size:
            seen.lows[channel] = min(seen.lows[channel], float(part.min()))
            seen.highs[channel] = max(seen.highs[channel], float(part.max()))


def _add_values(
    seen: _Pixels, slab: NDArray[Any], rows: slice, probes: dict[str, NDArray[np.float64]], space: Space
) -> None:
    """Take the pixels of a slab at those probes that lie in it."""
    for name, index in probes.items():
        here = space.contains(index)
        here[here] = (np.rint(index[here, 0]) >= rows.start) & (np.rint(index[here, 0]) < rows.stop)
        at = np.clip(np.rint(index[here]).astype(int), 0, np.asarray(space.shape) - 1)
        at[:, 0] -= rows.start
        seen.values[name][here] = slab[:, *at.T].mean(axis=0)


def _judged(
    found: Diagnosis, image: ImageFile, row: CaseRow, seen: _Pixels | None, *, strict: bool
) -> dict[str, NDArray[np.float64]] | None:
    """Add what is wrong with pixels; returns those at the probes as parts of the range.

    Args:
        strict: whether values that aren't finite and images without contrast stop the training.
    """
    if seen is None:
        return None
    low, high = float(seen.lows.min()), float(seen.highs.max())
    if seen.not_finite:
        total = image.channels * prod(image.space.shape)
        replaced = "" if strict or low > high else " (training takes the smallest and the largest value instead)"
        severity = "error" if strict or low > high else "warning"
        count = f"{seen.not_finite} of {total} voxels" if seen.whole else f"{seen.not_finite} of the voxels looked at"
        found.add(severity, image.path, f"{count} are NaN or infinite{replaced}")
    if low > high:
        return None
    row.low, row.high = low, high
    if (seen.lows >= seen.highs).all():
        severity = "error" if strict and seen.whole else "warning"  # the rest may differ
        voxels = "every voxel" if seen.whole else "every voxel looked at"
        found.add(severity, image.path, f"constant, {voxels} is {seen.lows[0]:g}")
        return None
    if seen.likeness is not None and abs(seen.likeness) < 0.02:
        found.add(
            "warning",
            image.path,
            f"neighbouring voxels don't agree (correlation {seen.likeness:.3f}): noise, or the low byte of a wider "
            "type",
        )
    return {name: (pixels - low) / (high - low) for name, pixels in seen.values.items()}


def _neighbour_correlation(slab: NDArray[Any]) -> float:
    """Correlation of voxels with the next along the last axis, NaN for a constant slab."""
    here, there = slab[..., :-1].ravel(), slab[..., 1:].ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(here, there)[0, 1])


def _inspect_labels(found: Diagnosis, case: Case, needs: Sequence[str], expected: Sequence[int]) -> None:
    """Whether a case's labels can be read, lie on its image's grid and are whole numbers, some of them `expected`."""
    reference = Reference.of_file(case.image, case.options)
    for path, need, kind in ((case.labels, "labels", class_numbers), (case.instances, "masks", whole_numbers)):
        if path is None or need not in needs:
            continue
        try:
            file = open_labels(path, reference)
            present: set[int] = set()
            told = None
            windows, whole = _slabs(found, path, file.placement.shape, file.file.dtype.itemsize)
            for window in windows:
                ids = kind(file.read(window), path)
                present.update(np.unique(ids).tolist())
                told = in_pieces(ids) if need == "masks" and len(windows) == 1 else None
        except VoxelryError as error:
            found.add("error", path, str(error).removeprefix(f"{path}: "))
            continue
        if told is not None:
            found.add("warning", path, told)
        if need == "labels" and expected and not present & set(expected) and whole:
            found.add("error", path, no_foreground(expected, present))


def compare_images(found: Diagnosis, reads: list[CaseRead], *, greyed: bool = True) -> None:
    """Ranks, channels, spacings, axes and types across cases.

    Args:
        greyed: whether training takes coloured images among grey ones as grey.
    """
    if len(reads) < 2:
        return
    _odd_ones(found, "error", ((str(r.case.image), f"{r.space.ndim}-D") for r in reads), "is {own}, expected {usual}")
    if greyed and {read.row.channels for read in reads} == GREY_AND_COLOUR:
        found.add("info", found.root, "some images are grey and some in colour: training takes all as grey")
    else:
        channels = ((str(r.case.image), f"{r.row.channels} channel{'s' * (r.row.channels != 1)}") for r in reads)
        _odd_ones(found, "error", channels, "has {own}, expected {usual}")
    _compare_spacings(found, reads)
    for what, values in (
        ("axes", [read.row.axes or "" for read in reads]),
        ("types", [read.row.dtype or "" for read in reads]),
    ):
        tally = Counter(values)
        if len(tally) > 1:
            listed = ", ".join(f"{count} x {value}" for value, count in tally.most_common())
            found.add("info", found.root, f"mixed {what}: {listed}")


def _compare_spacings(found: Diagnosis, reads: list[CaseRead]) -> None:
    """Along the patient's axes, so that volumes of one spacing in other axes agree."""
    spacings = np.array([_patient_spacing(read.space) for read in reads])
    known = np.isfinite(spacings).any(axis=0)  # planes of one direction know two axes only
    spacings, names = spacings[:, known], np.array(_PATIENT_AXES)[known]
    usual, low, high = np.nanmedian(spacings, axis=0), np.nanmin(spacings, axis=0), np.nanmax(spacings, axis=0)
    apart = np.nanmax(np.abs(spacings - usual) / usual, axis=1)
    count = int((apart > _SPACING_TOLERANCE).sum())
    if not count:
        return
    spans = ", ".join(
        f"{name} {a:.4g}" + (f" to {b:.4g}" if (b - a) / a > _SPACING_TOLERANCE else "")
        for name, a, b in zip(names, low, high, strict=True)
    )
    farthest = reads[int(np.argmax(apart))].case.image.name
    differ = f"{count} of {len(reads)} images differ from the median, most {farthest}"
    found.add(
        "warning",
        found.root,
        f"mixed spacings in mm: {spans}; {differ} (data.preprocess.spacing=... of a training brings them to one)",
    )


def _compare_points(found: Diagnosis, reads: list[CaseRead]) -> None:
    """Counts and names across cases, points outside, and points that look misread."""
    _odd_ones(
        found,
        "error",
        ((r.placed.name, f"{len(r.names)} points") for r in reads if r.placed),
        "has {own}, expected {usual}",
    )
    if reads and not any(read.row.points for read in reads):
        found.add("error", found.root, "no landmark has a position in any case")
    tally = Counter(len(read.names) for read in reads).most_common(1)
    alike = [read for read in reads if tally and len(read.names) == tally[0][0]]
    _compare_names(found, alike)
    suspicions: dict[str, Suspicion] = {}
    for read in reads:
        suspicion = None if read.placed is None else outside_test(read.placed)
        if suspicion is not None:
            suspicions[suspicion.name] = suspicion
    for suspicion in cohort_test([_by_name(read) for read in alike if read.placed is not None]):
        suspicions.setdefault(suspicion.name, suspicion)
    for suspicion in suspicions.values():
        found.add(
            "error", suspicion.name, f"its points look misread: {suspicion.reason} ({_way_out(suspicion.reading)})"
        )
    background = background_test([read.intensities for read in reads if read.intensities])
    if background is not None and not suspicions:
        found.add("error", found.root, f"the points look misread: {background[1]} ({_way_out(background[0])})")
    for read in reads:
        if read.placed is not None and read.placed.name not in suspicions:
            _find_outside(found, read)


def _way_out(reading: str) -> str:
    return "set coordinate_system=" if "LPS" in reading else "set axis_order= or reorder the columns"


def _compare_names(found: Diagnosis, reads: list[CaseRead]) -> None:
    """Files whose points have other names than most."""
    tally = Counter(tuple(sorted(read.names)) for read in reads)
    if len(tally) < 2:
        return
    usual, count = tally.most_common(1)[0]
    for read in reads:
        lacking = Counter(usual) - Counter(read.names)
        if lacking and read.placed is not None:
            added = Counter(read.names) - Counter(usual)
            message = f"other names than in {count} of {len(reads)} cases: {_few(added)} in place of {_few(lacking)}"
            found.add("error", read.placed.name, message)


def _by_name(read: CaseRead) -> PlacedPoints:
    """The points in the order of their names, as files may differ in that."""
    assert read.placed is not None
    if len(set(read.names)) < len(read.names):
        return read.placed
    return replace(read.placed, index=read.placed.index[np.argsort(read.names)])


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + ", ..." * (len(listed) > 3)


def _find_outside(found: Diagnosis, read: CaseRead) -> None:
    assert read.placed is not None
    index = read.placed.index
    outside = np.isfinite(index).all(axis=1) & ~read.space.contains(index)
    if outside.any():
        names = _few(read.names[k] for k in np.flatnonzero(outside))
        found.add("warning", read.placed.name, f"{outside.sum()} of {len(index)} points lie outside the image: {names}")


def _find_orphans(found: Diagnosis, cases: list[Case]) -> None:
    """Files beside the images that belong to none of them, and files among them that no reader takes."""
    names: dict[Path, set[str]] = {}
    for case in cases:
        if LAYOUTS[case.layout].images_alone:
            names.setdefault(case.image.parent, set()).add(case.name)
    for folder, known in sorted(names.items()):
        for path in _files(folder):
            if not is_image(path) and not path.name.lower().endswith(_COMPANIONS):
                found.add("warning", path, "is no image in a known format, left out")
        layout = next(case.layout for case in cases if case.image.parent == folder)
        for kind in _PARTNER_FOLDERS:
            if layout == "hand" or (layout == "chest" and kind != "labels"):
                continue
            for path in _files(folder.parent / kind):
                points = landmark_format(path) is not None
                if points or is_image(path):
                    name = path.name[: -len(landmark_format(path) or "") - 1] if points else case_name(path)
                    if name not in known:
                        found.add("warning", path, f"belongs to no image: there is no {name} in {folder.name}")


def find_unsplit(found: Diagnosis, cases: Sequence[Case], fractions: Sequence[float] | None = None) -> None:
    """Too few cases for the parts that a training makes of them where it is told nothing else."""
    try:
        training = split_cases(cases, fractions=fractions)["train"]
    except VoxelryError as error:
        found.add("error", found.root, str(error))
        return
    if not training:
        found.add("error", found.root, f"no cases are left for training after the split (of {len(cases)} in all)")


def _find_gaps(found: Diagnosis, cases: list[Case], demands: Demands | None) -> None:
    """Cases without the labels or instances that the task, or else most of the others, asks for."""
    required = None if demands is None else demands.required
    for case in cases:
        fault = lacking(case, required)
        if fault is not None:
            found.add("error", case.image, fault)
    for kind, need in (("labels", "labels"), ("instances", "masks")):
        bare = [case for case in cases if getattr(case, kind) is None]
        asked = kind != required and (demands is None or need in demands.needs)
        if len(bare) < len(cases) and asked:
            for case in bare:
                having = len(cases) - len(bare)
                found.add("warning", case.image, f"has no {kind}, which {having} of {len(cases)} cases have")


def _compare_segments(found: Diagnosis, cases: list[Case]) -> None:
    """Segments of one name with other numbers in other cases; files that can't be read are told of already."""
    try:
        segment_names(cases)
    except DataError as error:
        found.add("error", found.root, str(error))
    except FileError:
        return


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def _odd_ones(found: Diagnosis, severity: str, values: Iterable[tuple[str, str]], message: str) -> None:
    """A finding for every file whose value is not the most frequent one."""
    listed = list(values)
    tally = Counter(value for _, value in listed)
    if len(tally) < 2:
        return
    usual, count = tally.most_common(1)[0]
    for file, own in listed:
        if own != usual:
            text = message.format(own=own, usual=usual)
            found.add(severity, file, f"{text} as in {count} of {len(listed)} cases")


def _kind_of_points(case: Case) -> tuple[bool, bool]:
    """Whether the file's coordinates are on the grid, and normalised."""
    system = case.point_options.get("coordinate_system", "auto")
    if system != "auto":
        return system in ("index", "normalised", "scaled"), system == "normalised"
    if case.layout in ("hand", "cephalometric"):
        return True, False
    text = case.landmarks[0].name.lower().endswith(".txt")
    return text, text


def _patient_spacing(space: Space) -> NDArray[np.float64]:
    """Spacing along the patient's three axes, NaN for the one that a plane doesn't have."""
    spacing = np.full(3, np.nan)
    for (world, _), step in zip(space.closest_axes(), space.spacing, strict=True):
        spacing[world] = step
    return spacing


def without_path(error: VoxelryError) -> str:
    """The message of an error; a file's own name stands in its column already."""
    path = getattr(error, "path", None)
    return str(error).removeprefix(f"{path}: ") if path else str(error)

"""Where the frames of DICOM images lie, and which of them share a grid (DICOM PS3.3).

`frames_of(header)` gives a `Frame` for each plane of pixels in a file, wherever its kind of object keeps the
geometry:

- CT, MR, PT and other single slices: the Image Plane module (C.7.6.2);
- enhanced objects, parametric maps, segmentations, tomosynthesis, X-ray 3-D, ophthalmic tomography: functional
  groups, a frame's own before the shared ones (C.7.6.16); ultrasound volumes in their own frame of reference;
- NM: DetectorInformationSequence; the sign of SpacingBetweenSlices is the direction (C.8.4.15);
- RT dose: GridFrameOffsetVector (C.8.8.3.2); multi-frame secondary capture: SliceLocationVector (C.8.6.4);
- any other file of several frames: FrameIncrementPointer says whether they are moments, SpacingBetweenSlices how
  far they are apart; where neither is there, they are `untold`.

`split_stacks` parts frames that differ in size, orientation, pixel spacing, StackID or view; `arrange` sorts
the frames of one stack into planes and channels. Everything here is LPS mm, as DICOM has it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import keyword_for_tag

from voxelry.core.errors import FileError
from voxelry.io.images.dicom_channels import channel_order
from voxelry.io.images.dicom_spacing import pixel_spacing
from voxelry.io.images.dicom_values import directions, first_value, functional, point

__all__ = [
    "Frame",
    "Grid",
    "arrange",
    "differences",
    "frame_count",
    "frames_of",
    "plane_name",
    "split_stacks",
    "untold",
]

_SHARE = 0.05  # of the distance of planes: what rounding in headers may move one
_BESIDE = 0.25  # of the pixel spacing: how far one may be shifted within itself
_ANGLE = 1e-3  # of a unit vector: directions closer than this are the same
_MOMENTS = {  # what FrameIncrementPointer may name that isn't a place
    "FrameTime",
    "FrameTimeVector",
    "FrameLabelVector",
    "EnergyWindowVector",
    "PhaseVector",
    "RRIntervalVector",
    "TimeSlotVector",
    "TimeSliceVector",
    "DetectorVector",
    "RotationVector",
    "AngularViewVector",
}
_FILMS = (  # SOP classes (and their enhanced kin) whose frames are always moments
    "1.2.840.10008.5.1.4.1.1.12.1",  # X-ray angiography
    "1.2.840.10008.5.1.4.1.1.12.2",  # X-ray fluoroscopy
    "1.2.840.10008.5.1.4.1.1.3.1",  # ultrasound
    "1.2.840.10008.5.1.4.1.1.77.1.1.1",  # video endoscopy
    "1.2.840.10008.5.1.4.1.1.77.1.2.1",  # video microscopy
    "1.2.840.10008.5.1.4.1.1.77.1.4.1",  # video photography
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of pixels and where its header says it lies.

    Args:
        header: the file's header; `file` is its path.
        number: which frame of the file, from 0.
        orientation: `(2, 3)`, unit vectors in LPS along a row and along a column; None where not told.
        position: LPS mm of the centre of the first pixel; None where not told.
        height: mm along the normal (row x column), also where only distances are told; None for moments
            without a position.
        spacing: mm between rows and between columns; None where not told.
        view: what else keeps frames apart: StackID, detector, angle.
        doubt: what the header says of its spacing that isn't understood, else empty.
    """

    header: pydicom.Dataset
    number: int
    orientation: np.ndarray | None
    position: np.ndarray | None
    height: float | None
    spacing: tuple[float, float] | None
    view: tuple[Any, ...] = ()
    doubt: str = ""

    @property
    def file(self) -> Path:
        """The file that holds the pixels."""
        return Path(self.header.filename)

    @property
    def instance(self) -> tuple[int, int]:
        """InstanceNumber and number of the frame: the order in which frames were meant to be seen."""
        return int(getattr(self.header, "InstanceNumber", None) or 0), self.number

    @property
    def size(self) -> tuple[Any, ...]:
        """Rows, columns, samples per pixel, and what they mean."""
        keys = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
        return tuple(getattr(self.header, key, None) for key in keys)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector in LPS, row x column; z where the orientation isn't told."""
        if self.orientation is None:
            return np.array([0.0, 0.0, 1.0])
        return np.cross(self.orientation[0], self.orientation[1])


@dataclass(frozen=True, eq=False)
class Grid:
    """Frames of one stack in order.

    Args:
        frames: `[plane][channel]`, planes along the normal, channels by instance number where that gives the same
            channels in all planes, else by what the headers say of them.
        step: LPS mm from plane to plane, `(3,)`; None for a single plane and where nothing is placed.
        gap: mm from plane to plane; None for a single plane.
    """

    frames: list[list[Frame]]
    step: np.ndarray | None = None
    gap: float | None = None

    @property
    def first(self) -> Frame:
        """The frame that voxel 0 belongs to."""
        return self.frames[0][0]


def frame_count(header: pydicom.Dataset) -> int:
    """Number of frames in a file."""
    return int(getattr(header, "NumberOfFrames", None) or 1)


def untold(header: pydicom.Dataset) -> bool:
    """Whether a file has several frames and doesn't say if they are planes or moments, or how far apart."""
    return frame_count(header) > 1 and not _has_own_positions(header) and _offsets(header, 0.0) is None


def frames_of(header: pydicom.Dataset, *, apart: float = 0.0) -> list[Frame]:
    """A record of each frame of a file.

    Args:
        header: as `pydicom.dcmread` gives it, `filename` included.
        apart: mm between frames of a file that is `untold`; 0 takes them as moments.

    Raises:
        FileError: directions that aren't two orthogonal unit vectors, a spacing or offsets that can't be.
    """
    own = _has_own_positions(header)
    offsets = None if own else _offsets(header, apart)
    if offsets is None:
        offsets = np.zeros(frame_count(header))
    return [_frame(header, number, float(offset), own) for number, offset in enumerate(offsets)]


def split_stacks(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames that can lie on one grid, together; in the order of instance numbers."""
    stacks: list[list[Frame]] = []
    alike: dict[Hashable, list[list[Frame]]] = {}
    for frame in sorted(frames, key=lambda frame: frame.instance):
        candidates = alike.setdefault((frame.size, frame.view, frame.position is None), [])
        home = next((stack for stack in candidates if not differences(stack[0], frame)), None)
        if home is None:
            stacks.append([frame])
            candidates.append(stacks[-1])
        else:
            home.append(frame)
    return stacks


def differences(one: Frame, other: Frame) -> list[str]:
    """Names of what keeps two frames off one grid."""
    keys = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
    found = [key for key, mine, yours in zip(keys, one.size, other.size, strict=True) if mine != yours]
    if (one.position is None) != (other.position is None):
        found.append("ImagePositionPatient (some have none)")
    if not _near(one.orientation, other.orientation, absolute=_ANGLE):
        found.append("ImageOrientationPatient")
    if not _near(one.spacing, other.spacing, relative=1e-3):
        found.append("PixelSpacing")
    if one.view != other.view:
        found.append("StackID, detector or angle")
    return found


def plane_name(frame: Frame) -> str:
    """`axial`, `coronal` or `sagittal`, whichever is nearest; `not placed` without an orientation."""
    if frame.orientation is None:
        return "not placed"
    return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(frame.normal)))]


def arrange(path: Path, frames: Sequence[Frame]) -> Grid:
    """Sort the frames of one stack into planes and channels.

    Frames at the same height are channels. Planes are evenly spaced: none is more than 5 % of their distance
    away from where it should be.

    Raises:
        FileError: a slice that is missing or doubled, uneven distances, planes that don't lie in a row,
            several files that don't say where they are, or which channel they are.
    """
    if any(frame.position is None for frame in frames) and len({frame.file for frame in frames}) > 1:
        raise FileError(path, "its slices don't say where they are (ImagePositionPatient, ImageOrientationPatient)")
    if any(frame.height is None for frame in frames):
        return Grid([list(frames)])
    grid, heights = _levels(frames)
    counts = [len(row) for row in grid]
    if len(set(counts)) > 1:
        usual = int(np.median(counts))
        odd = next(i for i, count in enumerate(counts) if count != usual)
        raise FileError(
            path,
            f"some slice positions occur more often than others (slice {odd}, sorted: {counts[odd]} times,"
            f" others {usual}): a slice is missing or doubled",
        )
    if len(grid) == 1:
        return Grid(grid)
    if counts[0] > 1:
        orders = channel_order(path, [[(frame.header, frame.number) for frame in row] for row in grid])
        grid = [[row[place] for place in order] for row, order in zip(grid, orders, strict=True)]
    gap = _even_gap(path, heights)
    if grid[0][0].position is None:
        return Grid(grid, None, gap)
    return Grid(grid, _even_step(path, grid, gap), gap)


def _levels(frames: Sequence[Frame]) -> tuple[list[list[Frame]], list[float]]:
    """Frames by height, lowest first, and the heights; those much closer than planes usually are share one."""
    placed = sorted(((float(frame.height or 0.0), i) for i, frame in enumerate(frames)))
    heights = np.array([height for height, _ in placed])
    gaps = np.diff(heights)
    spacing = frames[0].spacing
    # planes are hardly ever a hundred times closer together than the pixels within them
    least = 0.01 * min(spacing) if spacing else _SHARE * (heights[-1] - heights[0]) / max(1, len(gaps))
    apart = gaps[gaps > least]
    least = max(least, _SHARE * float(np.median(apart))) if len(apart) else least
    grid: list[list[Frame]] = []
    levels: list[float] = []
    for height, i in placed:
        if levels and height - levels[-1] <= least:
            grid[-1].append(frames[i])
        else:
            grid.append([frames[i]])
            levels.append(height)
    return [sorted(row, key=lambda frame: frame.instance) for row in grid], levels


def _even_gap(path: Path, heights: Sequence[float]) -> float:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if abs(gaps[worst] - usual) > _SHARE * usual:
        raise FileError(
            path,
            f"slices {worst} and {worst + 1} (sorted) are {gaps[worst]:.4g} mm apart, the others {usual:.4g}",
            "a slice is missing, or the spacing is irregular",
        )
    return float(heights[-1] - heights[0]) / (len(heights) - 1)


def _even_step(path: Path, grid: list[list[Frame]], gap: float) -> np.ndarray:
    places, normal = np.array([row[0].position for row in grid]), grid[0][0].normal
    step = (places[-1] - places[0]) / (len(grid) - 1)
    stray = places - places[0] - np.arange(len(grid))[:, None] * step
    along = stray @ normal
    beside = np.linalg.norm(stray - along[:, None] * normal, axis=1)
    shares = np.maximum(np.abs(along) / (_SHARE * gap), beside / (_BESIDE * min(grid[0][0].spacing or (gap,))))
    worst = int(np.argmax(shares))
    if shares[worst] > 1:
        away = float(np.linalg.norm(stray[worst]))
        raise FileError(path, f"slices don't lie in a row: slice {worst} (sorted) is {away:.3g} mm beside it")
    return step


def _frame(header: pydicom.Dataset, number: int, offset: float, own: bool) -> Frame:
    rotation = _rotation(header, number)
    orientation = None if rotation is None else directions(header, rotation)
    position = first_value(
        functional(header, "PlanePositionSequence", "ImagePositionPatient", number),
        functional(header, "PlanePositionVolumeSequence", "ImagePositionVolume", number),
        _of_detector(header, "ImagePositionPatient", number),
    )
    place = height = None
    if orientation is not None and position is not None:
        normal = np.cross(orientation[0], orientation[1])
        place = point(header, position) + offset * normal
        height = float(normal @ place)
    elif not own and frame_count(header) > 1:
        height = offset
    spacing, doubt = pixel_spacing(header, number)
    return Frame(header, number, orientation, place, height, spacing, _view(header, number), doubt)


def _rotation(header: pydicom.Dataset, number: int) -> Any:
    return first_value(
        functional(header, "PlaneOrientationSequence", "ImageOrientationPatient", number),
        functional(header, "PlaneOrientationVolumeSequence", "ImageOrientationVolume", number),
        _of_detector(header, "ImageOrientationPatient", number),
    )


def _has_own_positions(header: pydicom.Dataset) -> bool:
    """Whether frames have a position each, in their functional groups; a single frame has its own, too."""
    if frame_count(header) == 1:
        return True
    groups = getattr(header, "PerFrameFunctionalGroupsSequence", None) or ()
    placed = any("PlanePositionSequence" in group or "PlanePositionVolumeSequence" in group for group in groups)
    return placed and _rotation(header, 0) is not None


def _offsets(header: pydicom.Dataset, apart: float) -> np.ndarray | None:
    """Mm along the normal from the first frame to each; zeros for moments, None where that isn't told.

    `apart` is taken where the file counts planes, or nothing, and doesn't say how far they are apart.
    """
    count = frame_count(header)
    pointer = getattr(header, "FrameIncrementPointer", None)
    tags = [] if pointer is None else [pointer] if isinstance(pointer, int) else list(pointer)
    named = {keyword_for_tag(tag) for tag in tags}
    between = float(functional(header, "PixelMeasuresSequence", "SpacingBetweenSlices") or apart)
    for key in ("GridFrameOffsetVector", "SliceLocationVector"):
        if getattr(header, key, None) is not None:
            return _vector(header, key, count)
    if "SliceVector" in named or getattr(header, "SliceVector", None) is not None:
        numbers = _vector(header, "SliceVector", count) if "SliceVector" in header else np.arange(count)
        return numbers * between if between or not np.ptp(numbers) else None
    if named & _MOMENTS or str(header.get("SOPClassUID", "")).startswith(_FILMS):
        return np.zeros(count)
    return np.arange(count) * abs(between) if between else None


def _vector(header: pydicom.Dataset, key: str, count: int) -> np.ndarray:
    """An attribute with a number per frame, from that of the first frame on."""
    values = np.atleast_1d(np.asarray(header.get(key), dtype=np.float64))
    if len(values) != count or not np.isfinite(values).all():
        raise FileError(header.filename, f"expected {count} numbers in {key}, one per frame, got {len(values)}")
    if key == "GridFrameOffsetVector":
        height = float((getattr(header, "ImagePositionPatient", None) or (0.0, 0.0, 0.0))[2])
        if values[0] != 0 and abs(values[0] - height) > _SHARE * float(np.abs(np.diff(values)).max()):
            raise FileError(
                header.filename,
                f"GridFrameOffsetVector begins with {values[0]:g}; expected 0 or {height:g}, the z of its position",
            )
    return values - values[0]


def _of_detector(header: pydicom.Dataset, key: str, number: int) -> Any:
    detectors = getattr(header, "DetectorInformationSequence", None)
    if not detectors:
        return None
    which = _entry(header, "DetectorVector", number) or 1
    return getattr(detectors[min(max(int(which), 1), len(detectors)) - 1], key, None)


def _view(header: pydicom.Dataset, number: int) -> tuple[Any, ...]:
    """What parts frames whose planes may look alike: their stack, and the side or angle that they show."""
    stack = functional(header, "FrameContentSequence", "StackID", number)
    angle = functional(header, "PositionerPositionSequence", "PositionerPrimaryAngle", number)
    turned = [_entry(header, f"Positioner{which}AngleIncrement", number) for which in ("Primary", "Secondary")]
    if getattr(header, "SliceVector", None) is not None:  # reconstructed: detectors and angles are behind it
        return (stack, angle, *turned)
    views = [_entry(header, key, number) for key in ("DetectorVector", "RotationVector", "AngularViewVector")]
    return (stack, angle, *turned, *views)


def _entry(header: pydicom.Dataset, key: str, number: int) -> Any:
    """The entry of one frame in an attribute with an entry per frame; None where there is none."""
    values = getattr(header, key, None)
    if values is None or values == "":
        return None
    values = list(values) if isinstance(values, Sequence | pydicom.multival.MultiValue) else [values]
    return values[number] if number < len(values) else None


def _near(one: Any, other: Any, *, absolute: float = 0.0, relative: float = 0.0) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=relative, atol=absolute))

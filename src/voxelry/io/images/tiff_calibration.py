"""How far apart the voxels of a TIFF file are and what its numbers mean, in the dialects that microscopes write.

OME-XML; ImageJ's description, whose calibration function is applied; the JSON of tifffile, Micro-Manager and NDTiff;
the tags of Zeiss LSM and SEM, MetaMorph STK and FEI; ScanImage; and the resolution tags of any TIFF, where screen
defaults of 72 and 96 dots per inch say nothing and are passed over. Whatever a file says in a word that isn't known
is kept as a fault (`Lengths`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tifffile

from voxelry.core.errors import FileError
from voxelry.io.units import Lengths

__all__ = ["NOTE", "Calibration", "read_calibration"]

Spacing = dict[str, float]

NOTE = "voxelry.affine"  # annotation that holds the whole affine, index to world RAS+ mm, row by row
_SCREEN_DPI = (72.0, 96.0)
_UNITS = {2: "inch", 3: "cm"}  # ResolutionUnit tag (TIFF 6.0, section 8)
_METADATA_TAG = 51123  # Micro-Manager's and NDTiff's JSON of a page
_POLYNOMIALS = 4  # ImageJ's Calibration: functions 0 to 3 are polynomials of degree 1 to 4
_NO_FUNCTION = 20
_ROUNDING = 1e-4  # what resolution tags may differ by that are meant to be equal
_PLAUSIBLE = 1000.0  # no microscope's planes are a thousand times closer or farther than its pixels


@dataclass(frozen=True)
class Calibration:
    """What a TIFF file says of its voxels.

    Attributes:
        spacing: mm by axis letter, for the axes of which the file says it.
        affine: our own note of the whole affine.
        metadata: what else is said (units, labels, names of channels).
        values: value = values[0] + values[1] * pixel + ..., or () where pixels are values.
    """

    spacing: Spacing
    affine: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()


def read_calibration(file: tifffile.TiffFile, number: int, lengths: Lengths) -> Calibration:
    """What the file says of its series `number`.

    Raises:
        FileError: a calibration function of ImageJ that isn't a polynomial.
    """
    if file.is_ome:
        return _ome(file, number, lengths)
    if file.is_imagej:
        return _imagej(file, lengths)
    readers: tuple[Callable[[tifffile.TiffFile, Lengths], Spacing], ...] = (
        _lsm, _stk, _micromanager, _fei, _zeiss_sem, _scanimage, _shaped, _tags,
    )  # fmt: skip
    spacing = next((found for reader in readers if (found := reader(file, lengths))), {})
    if not spacing:
        notes: dict[str, Any] = file.shaped_metadata[0] if file.shaped_metadata else {}
        _check_relative(file, notes, lengths, in_units="unit" not in notes and "spacing" in notes)
    return Calibration(_positive(spacing))


def _positive(spacing: Spacing) -> Spacing:
    return {letter: step for letter, step in spacing.items() if np.isfinite(step) and step > 0}


def _ome(file: tifffile.TiffFile, number: int, lengths: Lengths) -> Calibration:
    document = tifffile.xml2dict(file.ome_metadata).get("OME", {})
    images = _listed(document.get("Image", {}))
    pixels = images[number].get("Pixels", {}) if number < len(images) else {}
    spacing = {}
    for letter in "xyz":
        name = f"PhysicalSize{letter.upper()}"
        size = pixels.get(name)
        factor = lengths.factor(pixels.get(f"{name}Unit", "um"), f"{name}Unit")  # OME's default
        if size is not None and factor is not None:
            spacing[letter] = float(size) * factor
    if "z" not in spacing:
        spacing |= _ome_planes(_listed(pixels.get("Plane", [])), lengths)
    names = [channel.get("Name") for channel in _listed(pixels.get("Channel", []))]
    return Calibration(_positive(spacing), _own_affine(document), {"channel_names": names} if any(names) else {})


def _ome_planes(planes: list[dict[str, Any]], lengths: Lengths) -> Spacing:
    """The distance of planes by their positions, where these are regular and in a unit of length."""
    first = [plane for plane in planes if plane.get("TheC", 0) == 0 and plane.get("TheT", 0) == 0]
    told = {
        int(plane["TheZ"]): float(plane["PositionZ"]) for plane in first if "TheZ" in plane and "PositionZ" in plane
    }
    if len(told) < 2 or len(told) != len(first) or sorted(told) != list(range(len(told))):
        return {}
    factor = lengths.factor(first[0].get("PositionZUnit", "reference frame"), "PositionZUnit")
    steps = np.diff([told[number] for number in range(len(told))])
    if factor is None or np.ptp(steps) > 0.02 * abs(steps.mean()):
        return {}
    return {"z": abs(float(steps.mean())) * factor}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _own_affine(document: dict[str, Any]) -> np.ndarray | None:
    for note in _listed(document.get("StructuredAnnotations", {}).get("MapAnnotation", [])):
        for entry in _listed(note.get("Value", {}).get("M", [])):
            if isinstance(entry, dict) and entry.get("K") == NOTE:
                return np.asarray(json.loads(str(entry["value"])), dtype=np.float64)
    return None


def _imagej(file: tifffile.TiffFile, lengths: Lengths) -> Calibration:
    """ImageJ keeps `yunit` and `zunit` where they differ, and no `spacing` where planes are one unit apart.

    Without any unit it takes that of the resolution tags; what it saves itself always names one then, so that planes
    without `spacing` aren't told.
    """
    notes = file.imagej_metadata or {}
    unit = notes.get("unit")
    densities = _densities(file)
    spacing = {} if unit else _tags(file, lengths)
    if spacing and notes.get("spacing"):
        spacing["z"] = abs(float(notes["spacing"])) * (lengths.factor(_resolution_unit(file), "ResolutionUnit") or 1.0)
    for letter in "xyz" if unit or not spacing else "":
        factor = lengths.factor(
            notes.get(f"{letter}unit", unit), f"{letter}unit" if f"{letter}unit" in notes else "unit"
        )
        if factor is None:
            continue
        if letter == "z":
            spacing["z"] = abs(float(notes.get("spacing") or 1.0)) * factor
        elif letter in densities:
            spacing[letter] = factor / densities[letter]
    metadata: dict[str, Any] = {"units": unit} if unit else {}
    if notes.get("Labels"):
        metadata["labels"] = list(notes["Labels"])
    if set(spacing) == {"z"} and not notes.get("spacing"):  # a unit, but no pixel in it
        spacing = {}
    if not spacing:
        _check_relative(file, notes, lengths, in_units=not unit)
    return Calibration(_positive(spacing), None, metadata, _function(file, notes, lengths))


def _function(file: tifffile.TiffFile, notes: Mapping[str, Any], lengths: Lengths) -> tuple[float, ...]:
    """Coefficients of ImageJ's calibration function, which holds for unsigned grey pixels with a unit of value."""
    page = file.pages.first
    if "cf" not in notes or "vunit" not in notes or np.dtype(page.dtype).kind != "u" or page.samplesperpixel > 1:
        return ()
    function = int(notes["cf"])
    if function == _NO_FUNCTION:
        return ()
    if not 0 <= function < _POLYNOMIALS:
        raise FileError(
            lengths.path,
            f"its calibration function (number {function} of ImageJ) is no polynomial, so its values aren't known",
            "in ImageJ: Analyze > Calibrate, function None, and save it",
        )
    coefficients = tuple(float(notes.get(f"c{power}", 0.0)) for power in range(function + 2))
    return () if coefficients[:2] == (0.0, 1.0) and not any(coefficients[2:]) else coefficients


def _densities(file: tifffile.TiffFile) -> Spacing:
    """Pixels per unit, from the resolution tags."""
    found = {}
    for letter, name in (("x", "XResolution"), ("y", "YResolution")):
        tag = file.pages.first.tags.get(name)
        if tag is not None and all(tag.value):
            found[letter] = tag.value[0] / tag.value[1]
    return found


def _check_relative(file: tifffile.TiffFile, notes: Mapping[str, Any], lengths: Lengths, *, in_units: bool) -> None:
    """Sizes without a unit of length are a fault, unless they say no more than that all voxels are alike.

    Args:
        notes: `spacing` is the distance of planes.
        in_units: the sizes are in some unit that isn't named, so that only sizes of one say nothing. Else they are in
            pixels, and say nothing where they are equal.
    """
    sizes = {letter: 1 / density for letter, density in _densities(file).items()}
    planes = notes.get("spacing")
    if isinstance(planes, (int, float)) and planes:
        sizes["z"] = abs(float(planes))
    usual = 1.0 if in_units or len(sizes) < 2 else next(iter(sizes.values()))
    if not np.allclose(list(sizes.values()), usual, rtol=_ROUNDING, atol=0):
        listed = ", ".join(f"{size:.6g} along {letter}" for letter, size in sizes.items())
        lengths.lack(f"says how far apart voxels are ({listed}), but in no unit of length")


def _tags(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    unit = _resolution_unit(file)
    factor = lengths.factor(unit, "ResolutionUnit")
    if factor is None:
        return {}
    screen = _SCREEN_DPI if unit == "inch" else ()
    return {letter: factor / density for letter, density in _densities(file).items() if density not in screen}


def _resolution_unit(file: tifffile.TiffFile) -> str | None:
    tag = file.pages.first.tags.get("ResolutionUnit")
    return None if tag is None else _UNITS.get(int(tag.value))


def _shaped(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    """tifffile's JSON: `unit`, `spacing` of planes, and OME's names for sizes.

    tifffile writes inches into the resolution tags of anyone who names no unit there: a `unit` in the JSON is theirs,
    too, unless only the tags' unit goes with the distance of planes.
    """
    notes: dict[str, Any] = file.shaped_metadata[0] if file.shaped_metadata else {}
    spacing = {}
    for letter in "xyz":
        name = f"PhysicalSize{letter.upper()}"
        factor = lengths.factor(notes.get(f"{name}Unit", "um"), f"{name}Unit")
        if isinstance(notes.get(name), (int, float)) and factor is not None:
            spacing[letter] = float(notes[name]) * factor
    if spacing or not ({"unit", "spacing"} & set(notes)):
        return spacing
    factor = lengths.factor(notes.get("unit"), "unit of its JSON metadata")
    planes = notes.get("spacing")
    if isinstance(planes, (int, float)) and factor is not None:
        spacing["z"] = abs(float(planes)) * factor
    return spacing | _shaped_pixels(file, factor, spacing.get("z"), lengths)


def _shaped_pixels(file: tifffile.TiffFile, factor: float | None, planes: float | None, lengths: Lengths) -> Spacing:
    densities = _densities(file)
    unit = _resolution_unit(file)
    told = lengths.factor(unit, "ResolutionUnit")
    if factor is None or unit == "cm" or not densities:
        return _tags(file, lengths)
    own = {letter: factor / density for letter, density in densities.items()}
    if told is None or told == factor:
        return own
    tagged = {letter: told / density for letter, density in densities.items()}
    fitting = [
        found
        for found in (own, tagged)
        if planes and all(1 / _PLAUSIBLE < step / planes < _PLAUSIBLE for step in found.values())
    ]
    if len(fitting) != 1:
        lengths.lack(f"its resolution is per {unit} by its tags, but its JSON metadata name another unit")
        return {}
    return fitting[0]


def _lsm(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    notes = file.lsm_metadata if file.is_lsm else None
    return {letter: 1e3 * float(notes.get(f"VoxelSize{letter.upper()}", 0.0)) for letter in "xyz"} if notes else {}


def _stk(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    notes = file.stk_metadata if file.is_stk else None
    if not notes or not notes.get("SpatialCalibration", 1):
        return {}
    factor = lengths.factor(notes.get("CalibrationUnits"), "CalibrationUnits")
    if factor is None:
        return {}
    spacing = {
        letter: abs(float(notes[f"{letter.upper()}Calibration"])) * factor
        for letter in "xy"
        if f"{letter.upper()}Calibration" in notes
    }
    distances = np.atleast_1d(np.asarray(notes.get("ZDistance", 0.0), dtype=np.float64))
    if distances[0] and np.ptp(distances[: max(1, len(distances) - 1)]) <= 0.01 * abs(distances[0]):
        spacing["z"] = abs(float(distances[0])) * factor
    return spacing


def _micromanager(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    """Micro-Manager and NDTiff: µm in the JSON of the file and of its first page."""
    page = file.pages.first.tags.valueof(_METADATA_TAG)
    if page is None:
        return {}
    notes = dict(page) if isinstance(page, dict) else {}
    if file.is_micromanager:
        notes = dict((file.micromanager_metadata or {}).get("Summary") or {}) | notes
    size = next((notes[name] for name in ("PixelSizeUm", "PixelSize_um") if notes.get(name)), 0.0)
    planes = next((notes[name] for name in ("z-step_um", "ZStepUm") if notes.get(name)), 0.0)
    return {"x": 1e-3 * float(size), "y": 1e-3 * float(size), "z": 1e-3 * abs(float(planes))} if size else {}


def _fei(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    """FEI and Thermo Fisher: metres."""
    notes = (file.fei_metadata if file.is_fei else None) or {}
    scan = notes.get("Scan") or notes.get("EScan") or {}
    found = {letter: scan.get(name) for letter, name in (("x", "PixelWidth"), ("y", "PixelHeight"))}
    return {letter: 1e3 * float(step) for letter, step in found.items() if isinstance(step, (int, float))}


def _zeiss_sem(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    notes = (file.sem_metadata if file.is_sem else None) or {}
    found = notes.get("ap_image_pixel_size") or notes.get("ap_pixel_size")
    if not isinstance(found, tuple) or len(found) != 3:
        return {}
    factor = lengths.factor(found[2], "ap_image_pixel_size")
    return {} if factor is None else {letter: float(found[1]) * factor for letter in "xy"}


def _scanimage(file: tifffile.TiffFile, lengths: Lengths) -> Spacing:
    """ScanImage: the resolution tags, and the step of the stack in µm."""
    frames = ((file.scanimage_metadata if file.is_scanimage else None) or {}).get("FrameData") or {}
    step = frames.get("SI.hStackManager.stackZStepSize") or frames.get("SI.hStackManager.actualStackZStepSize")
    pixels = _tags(file, lengths) if frames else {}
    return pixels | ({"z": 1e-3 * abs(float(step))} if pixels and isinstance(step, (int, float)) else {})

"""Length units as image files spell them, and the difference between a unit that isn't told and one that isn't known.

The symbols and factors are those of OME's schema (`UnitsLength`, version 2016-06), the long names those of OME-Zarr;
plurals, both spellings of metre, both characters for micro and ImageJ's escapes are read, too. Case counts where it
changes the meaning: `Mm` is a megametre.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np

from voxelry.core.errors import FileError
from voxelry.io.advice import way_to_say

__all__ = ["SPACING_ADVICE", "Lengths", "UnitError", "millimetres"]

SPACING_ADVICE = f"say it, mm in array order: {way_to_say(spacing=[2, 1, 1])}"
"""The way out wherever a file doesn't say how far apart its voxels are; `open_image` takes it."""

_PREFIXES = {
    "yotta": ("Y", 24), "zetta": ("Z", 21), "exa": ("E", 18), "peta": ("P", 15), "tera": ("T", 12),
    "giga": ("G", 9), "mega": ("M", 6), "kilo": ("k", 3), "hecto": ("h", 2), "deca": ("da", 1), "deka": ("da", 1),
    "": ("", 0), "deci": ("d", -1), "centi": ("c", -2), "milli": ("m", -3), "micro": ("μ", -6), "nano": ("n", -9),
    "pico": ("p", -12), "femto": ("f", -15), "atto": ("a", -18), "zepto": ("z", -21), "yocto": ("y", -24),
}  # fmt: skip
_ASTRONOMICAL_UNIT = 149597870700e3
_SYMBOLS = {f"{symbol}m": float(f"1e{power + 3}") for symbol, power in _PREFIXES.values()} | {
    "um": 1e-3,
    "μ": 1e-3,
    "MM": 1.0,  # headers in capitals; a megametre is Mm
    "Å": 1e-7,
    "A": 1e-7,
    "in": 25.4,
    "li": 25.4 / 12,
    "pt": 25.4 / 72,
    "ft": 304.8,
    "yd": 914.4,
    "mi": 1609344.0,
    "ua": _ASTRONOMICAL_UNIT,
    "ly": 9460730472580800e3,
    "pc": _ASTRONOMICAL_UNIT * 648000 / math.pi,
}
_WORDS = {
    f"{prefix}met{ending}": float(f"1e{power + 3}")
    for prefix, (_, power) in _PREFIXES.items()
    for ending in ("er", "re")
} | {
    "micron": 1e-3,
    "angstrom": 1e-7,
    "ångström": 1e-7,
    "ångstrom": 1e-7,
    "thou": 0.0254,
    "line": 25.4 / 12,
    "point": 25.4 / 72,
    "inch": 25.4,
    "inche": 25.4,  # what is left of inches
    "foot": 304.8,
    "feet": 304.8,
    "yard": 914.4,
    "mile": 1609344.0,
    "parsec": _ASTRONOMICAL_UNIT * 648000 / math.pi,
}
_NO_LENGTHS = ("", "pixel", "voxel", "px", "reference frame", "none", "unitless", "dimensionless")
_SPACINGS = ("spacing", "resolution", "voxelsize", "voxelspacing", "pixelsize", "pixelspacing", "pixdim", "elementsize")
_ANY_CASE = ("m", "km", "cm", "um", "μm", "nm", "in", "ft", "å")  # no other symbol differs from these in case alone


class UnitError(FileError):
    """A file names a unit of length that isn't known, or doesn't say a spacing that it would have to say."""


def millimetres(path: str | PathLike[str], unit: object, field: str, advice: str = SPACING_ADVICE) -> float | None:
    """Millimetres in one `unit`; None where none is told, or one that is no length (`pixel`, `reference frame`).

    Args:
        path: named in the error.
        unit: the file's word for it, None for nothing.
        field: where the word stands.
        advice: the way out that the error names.

    Raises:
        UnitError: another word.
    """
    word = "" if unit is None else _plain(str(unit))
    if word in _SYMBOLS:
        return _SYMBOLS[word]
    lower = word.lower()
    singular = lower if lower in _WORDS else lower.removesuffix("s")
    if lower in _NO_LENGTHS or (singular and singular in _NO_LENGTHS):
        return None
    length = _WORDS.get(singular, _SYMBOLS.get("Å" if lower == "å" else lower) if lower in _ANY_CASE else None)
    if length is None:
        raise UnitError(path, f"{field}: {str(unit).strip()[:40]!r} is no unit of length that is known", advice)
    return length


@dataclass
class Lengths:
    """The lengths of one file, of which the first fault is kept, for a spacing that the user says makes up for it.

    Attributes:
        path: named in the fault.
        fault: goes to `ImageFile.spacing_fault`, which `open_image` raises unless it is told `spacing`.
    """

    path: str | PathLike[str]
    fault: UnitError | None = None

    def factor(self, unit: object, field: str) -> float | None:
        """As `millimetres`; None for an unknown word, too."""
        try:
            return millimetres(self.path, unit, field)
        except UnitError as error:
            self.fault = self.fault or error
            return None

    def lack(self, fault: str) -> None:
        """The file doesn't say how far apart its voxels are, or says it in a way that isn't understood."""
        self.fault = self.fault or UnitError(self.path, fault, SPACING_ADVICE)

    def overlook(self, said: Mapping[str, object]) -> None:
        """Notes beside an array that seem to say its spacing, but in no unit and order that is known.

        Args:
            said: all notes by name; those that hold nothing but ones change nothing.
        """
        for name, value in said.items():
            if name.lower().replace("_", "").replace(" ", "") in _SPACINGS and not _is_one(value):
                shown = " ".join(str(value).split())[:60]
                self.lack(f"says {name} = {shown}, of which neither unit nor order of axes is known")


def _is_one(value: object) -> bool:
    try:
        return bool((np.asarray(value, dtype=np.float64) == 1.0).all())
    except (TypeError, ValueError):
        return False


def _plain(word: str) -> str:
    r"""One spelling of micro and of Å, ImageJ's `\u00B5` resolved, single spaces."""
    word = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), word)
    return " ".join(unicodedata.normalize("NFKC", word).split()).strip("'\"")

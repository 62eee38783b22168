"""Length units as image files spell them."""

from __future__ import annotations

__all__ = ["millimetres"]

_LENGTHS = {
    "m": 1000.0,
    "metre": 1000.0,
    "meter": 1000.0,
    "cm": 10.0,
    "centimetre": 10.0,
    "centimeter": 10.0,
    "mm": 1.0,
    "millimetre": 1.0,
    "millimeter": 1.0,
    "um": 1e-3,
    "µm": 1e-3,  # micro sign
    "μm": 1e-3,  # Greek mu
    "\\u00b5m": 1e-3,  # ImageJ writes the escape
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometre": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "nanometre": 1e-6,
    "nanometer": 1e-6,
    "angstrom": 1e-7,
    "å": 1e-7,
    "pm": 1e-9,
    "picometer": 1e-9,
    "inch": 25.4,
    "in": 25.4,
}


def millimetres(unit: str | None) -> float | None:
    """Millimetres in one `unit`; None for no unit and for units that aren't lengths, such as `pixel`."""
    return None if unit is None else _LENGTHS.get(str(unit).strip().lower())

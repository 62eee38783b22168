"""Single attributes of DICOM headers, wherever a kind of object keeps them."""

from __future__ import annotations

from typing import Any

import pydicom

__all__ = ["first_value", "functional"]


def functional(header: pydicom.Dataset, sequence: str, key: str, frame: int = 0) -> Any:
    """An attribute of one frame: in its own functional groups, else the shared ones, else the image's.

    DICOM PS3.3, C.7.6.16. None where it is nowhere, or empty.

    Args:
        header: header of the file.
        sequence: the functional group that holds the attribute, such as `PixelMeasuresSequence`.
        key: the attribute, such as `PixelSpacing`.
        frame: which frame, from 0.
    """
    own = getattr(header, "PerFrameFunctionalGroupsSequence", None) or ()
    shared = getattr(header, "SharedFunctionalGroupsSequence", None) or ()
    for group in (*(own[frame : frame + 1] if frame < len(own) else ()), *shared):
        for item in getattr(group, sequence, None) or ():
            value = getattr(item, key, None)
            if value is not None and value != "":
                return value
    value = getattr(header, key, None)
    return None if value == "" else value


def first_value(*values: Any) -> Any:
    """The first that isn't None and isn't empty."""
    return next((value for value in values if value is not None and value != "" and value != []), None)

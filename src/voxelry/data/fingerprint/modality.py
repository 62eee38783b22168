"""What an image shows, as far as its file and its values tell."""

from __future__ import annotations

from collections.abc import Sequence

from voxelry.data.fingerprint.record import UNKNOWN
from voxelry.data.layouts.case import Case
from voxelry.data.preprocess.modality import AIR, Standard
from voxelry.io import ImageFile

__all__ = ["modality_of"]

_XRAY = ("cr", "dx", "dr", "mg", "rf", "xa", "io", "px")  # DICOM PS3.3, C.7.3.1.1.1
_MICROSCOPIC = 0.02  # mm: voxels of no scanner of patients are smaller
_DARK = 0.35  # of the range: the median of an image of bright things on a dark ground lies below


def modality_of(case: Case, file: ImageFile, quantiles: Sequence[float]) -> str:
    """`ct`, `mr`, `us`, `xray`, `fluorescence`, another of DICOM's in lower case, or `unknown`.

    The data set's own word counts first, then that of DICOM and of `voxelry prepare`, then what follows from values
    and voxels: Hounsfield units reach below air's, and what is magnified and dark but for few bright voxels glows.

    Args:
        case: with the data set's word.
        file: header of its image.
        quantiles: as `CaseFacts.quantiles`; empty where no values are known.
    """
    standard = Standard.of_note(file.metadata)
    named = str(case.modality or file.metadata.get("Modality") or (standard.modality if standard else "")).lower()
    if named:
        return "xray" if named in _XRAY else named
    if not quantiles:
        return UNKNOWN
    microscopic = min(file.space.spacing) <= _MICROSCOPIC
    if quantiles[0] < AIR and not microscopic:
        return "ct"
    low, middle, high = quantiles[1], quantiles[3], quantiles[5]
    glows = high > low >= 0 and middle - low < _DARK * (high - low)
    return "fluorescence" if microscopic and glows else UNKNOWN

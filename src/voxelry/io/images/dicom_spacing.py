"""The pixel spacing of DICOM images, wherever a kind of object keeps it.

PixelSpacing comes first (functional groups, or the image's), then the calibrated plane of X-ray images, then the
detector's divided by the magnification where that is told (PS3.3, C.8.7.5, 10.7), the scanner's for films, and the
imaging plane of RT images; PixelAspectRatio alone gives rows in pixels. Ultrasound says it in regions, in
centimetres per pixel (C.8.5.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom

from voxelry.core.errors import FileError
from voxelry.io.images.dicom_values import first_value, functional

__all__ = ["pixel_spacing"]

_CENTIMETRES = 3  # PhysicalUnitsXDirection
_PICTURE = 1  # RegionSpatialFormat: 2-D


def pixel_spacing(header: pydicom.Dataset, frame: int = 0) -> tuple[tuple[float, float] | None, str]:
    """Mm between rows and between columns, None where not told; and what is told but can't be taken as that.

    Raises:
        FileError: a spacing that isn't positive.
    """
    regions = getattr(header, "SequenceOfUltrasoundRegions", None)
    if regions:
        found, doubt = _of_regions(regions)
        if found is not None:
            return found, ""
        plain = functional(header, "PixelMeasuresSequence", "PixelSpacing", frame)
        return (None, doubt) if plain is None else (_pair(header, plain, "PixelSpacing"), "")
    spacing = first_value(
        functional(header, "PixelMeasuresSequence", "PixelSpacing", frame),
        functional(header, "ProjectionPixelCalibrationSequence", "ObjectPixelSpacingInCenterOfBeam", frame),
    )
    if spacing is not None:
        return _pair(header, spacing, "PixelSpacing"), ""
    detector = functional(header, "FramePixelDataPropertiesSequence", "ImagerPixelSpacing", frame)
    if detector is not None:
        magnification = float(getattr(header, "EstimatedRadiographicMagnificationFactor", None) or 1.0)
        rows, columns = _pair(header, detector, "ImagerPixelSpacing")
        return (rows / magnification, columns / magnification), ""
    for key in ("NominalScannedPixelSpacing", "ImagePlanePixelSpacing"):
        if getattr(header, key, None):
            return _pair(header, getattr(header, key), key), ""
    if getattr(header, "PixelAspectRatio", None):
        high, wide = _pair(header, header.PixelAspectRatio, "PixelAspectRatio")
        return (high / wide, 1.0), ""
    return None, ""


def _pair(header: pydicom.Dataset, values: Any, key: str) -> tuple[float, float]:
    numbers = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if numbers.shape != (2,) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise FileError(header.filename, f"expected two positive numbers in {key}, got {numbers.tolist()}")
    return float(numbers[0]), float(numbers[1])


def _of_regions(regions: Any) -> tuple[tuple[float, float] | None, str]:
    """The one scale of all 2-D regions; regions of spectra, graphs and M-mode have no place in the patient."""
    pictures = [region for region in regions if region.get("RegionSpatialFormat") == _PICTURE]
    if not pictures:
        return None, "its ultrasound regions hold no 2-D picture (M-mode or spectrum)"
    scales = []
    for region in pictures:
        units = (region.get("PhysicalUnitsYDirection"), region.get("PhysicalUnitsXDirection"))
        steps = (region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX"))
        if units != (_CENTIMETRES, _CENTIMETRES) or not all(steps):
            return None, "its ultrasound regions give no size in centimetres"
        scales.append([abs(float(step)) * 10 for step in steps])
    if not np.allclose(scales, scales[0], rtol=1e-3, atol=0):
        return None, f"its {len(scales)} ultrasound regions differ in scale"
    return (scales[0][0], scales[0][1]), ""

"""The pixels of DICOM frames: decoded, made RGB where they are colours, and rescaled.

pydicom unpacks uncompressed, deflated and run-length pixels, imagecodecs the JPEG family. What lies outside of
BitsStored is no part of a value (PS3.5, 8.1.1). Rescale slope and intercept, frame by frame, or the modality's table
(PS3.3, C.11.1), the dose grid scaling (C.8.8.3) and the real-world values of parametric maps (C.7.6.16.2.11) are
applied; display windows and MONOCHROME1 are left to the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from voxelry.core.errors import FileError
from voxelry.io.images.dicom_values import functional

__all__ = ["components", "pixel_type", "read_frames", "stored_size"]

_UNCHANGED = (1.0, 0.0)
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


def components(header: pydicom.Dataset) -> int:
    """Colours per pixel as they leave `read_frames`: a palette becomes RGB."""
    return 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else int(header.get("SamplesPerPixel", 1))


def stored_size(header: pydicom.Dataset) -> tuple[int, int, bool]:
    """Samples per pixel and bits per sample on disk, and whether they are compressed.

    Raises:
        FileError: a transfer syntax of somebody's own.
    """
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and syntax.is_private:
        raise FileError(header.filename, f"unknown transfer syntax {syntax}")
    samples = int(header.get("SamplesPerPixel", 1))
    if str(header.get("PhotometricInterpretation", "")).endswith("422"):
        samples = 2  # colour is stored for every second pixel only
    compressed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
    return samples, int(header.BitsAllocated), compressed


def pixel_type(frames: Sequence[tuple[pydicom.Dataset, int]]) -> np.dtype:
    """A type that holds the rescaled pixels of all frames: float32 where a scale isn't whole, else integers.

    Pixels of double precision (DoubleFloatPixelData) stay float64.

    Args:
        frames: for each the header of its file and its number there.
    """
    kinds = {_frame_type(header, number) for header, number in frames}
    if np.dtype(np.float64) in kinds:
        return np.dtype(np.float64)
    dtype = np.result_type(*kinds)
    return dtype if dtype.kind in "iu" else np.dtype(np.float32)


def _frame_type(header: pydicom.Dataset, number: int) -> np.dtype:
    table = header.get("ModalityLUTSequence")
    if table:
        return np.dtype(np.uint8 if int(table[0].LUTDescriptor[2]) <= 8 else np.uint16)
    stored, (slope, intercept) = _stored_type(header), _rescale(header, number)
    if (slope, intercept) == _UNCHANGED or stored.kind == "f":
        return stored
    bits = int(header.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.kind == "i" else (0, 2**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if not (slope.is_integer() and intercept.is_integer()):
        return np.dtype(np.float32)
    fitting = [kind for kind in (stored, np.dtype(np.int16), np.dtype(np.int32)) if _fits(ends, kind)]
    return fitting[0] if fitting else np.dtype(np.float32)


def read_frames(path: Path, numbers: Sequence[int], dtype: np.dtype) -> list[np.ndarray]:
    """Frames of one file, `(rows, columns, components)` each, of type `dtype`.

    Raises:
        FileError: a coding that can't be decoded, or pixels that break off.
    """
    data = pydicom.dcmread(path, force=True)
    syntax = getattr(data.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        raise FileError(path, "doesn't say how its pixels are stored (TransferSyntaxUID)")
    if not syntax.is_encapsulated or syntax == RLELossless:
        raw = iter_pixels(data, indices=list(numbers), correct_unused_bits=False)
        frames = [_within_bits(frame, data) for frame in raw]
    else:
        total = int(data.get("NumberOfFrames") or 1)
        frames = [_decode(data, syntax, get_frame(data.PixelData, i, number_of_frames=total)) for i in numbers]
    if data.PhotometricInterpretation == "PALETTE COLOR":
        frames = [_bytes(apply_color_lut(frame, data), data) for frame in frames]
    shape = (int(data.Rows), int(data.Columns), components(data))
    planes = []
    for number, frame in zip(numbers, frames, strict=True):
        slope, intercept = _rescale(data, number)
        if data.get("ModalityLUTSequence"):
            frame = apply_modality_lut(frame, data)
        elif (slope, intercept) != _UNCHANGED:
            frame = frame * slope + intercept
        planes.append(frame.reshape(shape).astype(dtype))
    return planes


def _decode(data: pydicom.Dataset, syntax: pydicom.uid.UID, code: bytes) -> np.ndarray:
    coloured = int(data.get("SamplesPerPixel", 1)) == 3
    if syntax in JPEG2000TransferSyntaxes:
        frame = imagecodecs.jpeg2k_decode(code)
    elif syntax in JPEGLSTransferSyntaxes:
        frame = imagecodecs.jpegls_decode(code)
    elif syntax in (JPEGLossless, JPEGLosslessSV1):
        frame = imagecodecs.ljpeg_decode(code)
    elif syntax in JPEGTransferSyntaxes:
        # the data set says whether the three components are luminance and chrominance; JPEG markers may be absent
        space = ("YCBCR" if str(data.PhotometricInterpretation).startswith("YBR") else "RGB") if coloured else None
        frame = imagecodecs.jpeg8_decode(code, colorspace=space, outcolorspace="RGB" if coloured else None)
    else:
        raise FileError(data.filename, f"can't decode {syntax.name}")
    if int(data.PixelRepresentation) == 1 and frame.dtype.kind == "u":
        spare = frame.dtype.itemsize * 8 - int(data.BitsStored)  # the stream forgot the sign: extend its highest bit
        frame = (frame << spare).view(frame.dtype.str.replace("u", "i")) >> spare
    return frame


def _bytes(frame: np.ndarray, data: pydicom.Dataset) -> np.ndarray:
    """Palettes give 16-bit colours that often hold 8 bits twice; their type stays that of the stored pixels."""
    return frame >> 8 if frame.dtype.itemsize == 2 and int(data.BitsAllocated) == 8 else frame


def _within_bits(frame: np.ndarray, data: pydicom.Dataset) -> np.ndarray:
    """The bits from HighBit down alone; older files keep overlays and other things in the rest."""
    if frame.dtype.kind not in "iu" or int(data.BitsAllocated) % 8 or data.PhotometricInterpretation == "PALETTE COLOR":
        return frame
    bits, stored = frame.dtype.itemsize * 8, int(data.BitsStored)
    above = bits - 1 - int(data.get("HighBit", stored - 1))
    if above < 0 or above + stored > bits:
        raise FileError(data.filename, f"expected BitsStored {stored} to end at HighBit {data.HighBit} of {bits} bits")
    return frame if stored == bits else (frame << above) >> (bits - stored)


def _stored_type(header: pydicom.Dataset) -> np.dtype:
    bits = int(header.BitsAllocated)
    if header.get("PixelRepresentation") is None:  # only floating point pixels have no sign to declare
        return np.dtype(f"f{bits // 8}")
    if bits == 1:
        return np.dtype(np.uint8)
    return np.dtype(f"{'i' if header.PixelRepresentation == 1 else 'u'}{bits // 8}")


def _rescale(header: pydicom.Dataset, frame: int) -> tuple[float, float]:
    slope = functional(header, "PixelValueTransformationSequence", "RescaleSlope", frame)
    intercept = functional(header, "PixelValueTransformationSequence", "RescaleIntercept", frame)
    if slope is None and header.get("SOPClassUID") == _PARAMETRIC_MAP:
        slope = functional(header, "RealWorldValueMappingSequence", "RealWorldValueSlope", frame)
        intercept = functional(header, "RealWorldValueMappingSequence", "RealWorldValueIntercept", frame)
    dose = header.get("DoseGridScaling")
    factor, offset = float(1.0 if slope is None else slope), float(intercept or 0.0)
    if not (np.isfinite([factor, offset]).all() and factor):
        raise FileError(header.filename, f"expected a rescale slope other than 0, got {factor:g}, intercept {offset:g}")
    return factor * float(dose or 1.0), offset


def _fits(ends: Sequence[float], dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= ends[0] and ends[1] <= limits.max)

"""The pixels of DICOM frames: decoded, made RGB where they are colours, and rescaled.

pydicom unpacks uncompressed, deflated and run-length pixels, imagecodecs the JPEG family. Rescale slope and
intercept (PS3.3, C.11.1) and the dose grid scaling (C.8.8.3) are applied; display windows and MONOCHROME1 are
left to the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, iter_pixels
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from voxelry.core.errors import FileError

__all__ = ["components", "functional", "pixel_type", "read_frames", "stored_size"]

_UNCHANGED = (1.0, 0.0)


def functional(header: pydicom.Dataset, sequence: str, key: str, frame: int = 0) -> Any:
    """An attribute of a frame: of the image, or in the functional groups of a multi-frame one (PS3.3, C.7.6.16)."""
    if getattr(header, key, None) is not None:
        return getattr(header, key)
    groups = list(getattr(header, "SharedFunctionalGroupsSequence", []))
    groups += list(getattr(header, "PerFrameFunctionalGroupsSequence", []))[frame : frame + 1]
    for group in groups:
        for item in getattr(group, sequence, []):
            if getattr(item, key, None) is not None:
                return getattr(item, key)
    return None


def components(header: pydicom.Dataset) -> int:
    """Colours per pixel as they leave `read_frames`: a palette becomes RGB."""
    return 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else int(header.get("SamplesPerPixel", 1))


def stored_size(header: pydicom.Dataset) -> tuple[int, int, bool]:
    """Samples per pixel and bytes per sample on disk, and whether they are compressed.

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
    return samples, max(1, int(header.BitsAllocated) // 8), compressed


def pixel_type(headers: Sequence[pydicom.Dataset], counts: Sequence[int]) -> np.dtype:
    """A type that holds the rescaled pixels of all frames: float32 where a scale isn't whole, else integers."""
    types = set()
    for header, count in zip(headers, counts, strict=True):
        stored, bits, signed = _stored_type(header), int(header.BitsStored), header.PixelRepresentation == 1
        for frame in range(count):
            slope, intercept = _rescale(header, frame)
            if (slope, intercept) == _UNCHANGED:
                types.add(stored)
                continue
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            ends = sorted((low * slope + intercept, high * slope + intercept))
            whole = slope.is_integer() and intercept.is_integer()
            fitting = [kind for kind in (stored, np.dtype(np.int16), np.dtype(np.int32)) if _fits(ends, kind)]
            types.add(fitting[0] if whole and fitting and stored.kind != "f" else np.dtype(np.float32))
    dtype = np.result_type(*types)
    return dtype if dtype.kind in "iu" else np.dtype(np.float32)


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
        frames = list(iter_pixels(data, indices=list(numbers)))
    else:
        total = int(data.get("NumberOfFrames") or 1)
        frames = [_decode(data, syntax, get_frame(data.PixelData, i, number_of_frames=total)) for i in numbers]
    if data.PhotometricInterpretation == "PALETTE COLOR":
        frames = [_bytes(apply_color_lut(frame, data), data) for frame in frames]
    shape = (int(data.Rows), int(data.Columns), components(data))
    planes = []
    for number, frame in zip(numbers, frames, strict=True):
        slope, intercept = _rescale(data, number)
        if (slope, intercept) != _UNCHANGED:
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


def _stored_type(header: pydicom.Dataset) -> np.dtype:
    if int(header.BitsAllocated) == 1:
        return np.dtype(np.uint8)
    return np.dtype(f"{'i' if header.PixelRepresentation == 1 else 'u'}{int(header.BitsAllocated) // 8}")


def _rescale(header: pydicom.Dataset, frame: int) -> tuple[float, float]:
    slope = functional(header, "PixelValueTransformationSequence", "RescaleSlope", frame)
    intercept = functional(header, "PixelValueTransformationSequence", "RescaleIntercept", frame)
    dose = header.get("DoseGridScaling")
    return float(slope or 1.0) * float(dose or 1.0), float(intercept or 0.0)


def _fits(ends: Sequence[float], kind: np.dtype) -> bool:
    limits = np.iinfo(kind)
    return bool(limits.min <= ends[0] and ends[1] <= limits.max)

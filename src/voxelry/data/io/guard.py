"""Keeping file libraries quiet, their errors one line long, and their appetite for memory bounded.

A reader calls its library inside `guarded(path)`: whatever goes wrong in there leaves as a `FileError`
that names the file, and the library's own warnings and log lines stay inside.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError, VoxelryError

__all__ = ["check_numeric", "check_stored", "guarded"]

_CHATTY = ("tifffile", "pydicom", "nibabel", "nibabel.global", "PIL", "h5py", "SimpleITK")
_DEFLATE_RATIO = 1032  # the most that deflate can shrink anything (zlib technical details)
_SLACK = 1 << 26  # a size that no machine minds, whatever the header says


@contextmanager
def guarded(path: str | Path, action: str = "can't be read") -> Iterator[None]:
    """Run library code on `path` without its noise; every failure leaves as a one-line `FileError`.

    Raises:
        FileError: any `Exception` raised inside, in one line; our own errors that already name a file
            pass through, other `VoxelryError`s are given the file's name.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:
                # files that a library left open are closed here, not whenever the error is forgotten
                traceback.clear_frames(error.__traceback__)
                raise
    except FileError:
        raise
    except VoxelryError as error:
        raise FileError(path, str(error)) from error
    except MemoryError as error:
        raise FileError(path, "needs more memory than there is", "read a window of it") from error
    except FileNotFoundError as error:
        missing = error.filename if error.filename not in (None, str(path), path) else ""
        raise FileError(path, f"no such file: {missing}" if missing else "no such file") from error
    except Exception as error:
        raise FileError(path, f"{action}: {_reason(error)}") from error
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def check_numeric(path: str | Path, dtype: np.dtype) -> np.dtype:
    """The dtype as the array will have it: native byte order, real numbers; bool becomes uint8.

    Raises:
        FileError: complex numbers, strings, objects or records.
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        raise FileError(path, f"holds complex numbers ({dtype})", "save the magnitude or the phase on its own")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "uif":
        raise FileError(path, f"expected numbers, got elements of type {dtype}")
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype(np.float64)
    return dtype.newbyteorder("=")


def check_stored(
    path: str | Path, shape: Sequence[int], itemsize: int, stored: int, *, compressed: bool = False
) -> None:
    """Compare what a header promises with the `stored` bytes that can hold it, before anything is allocated.

    Raises:
        FileError: an empty or negative axis; fewer bytes than uncompressed pixels need; more pixels than
            any compression of `stored` bytes could give.
    """
    if not shape or any(size < 1 for size in shape):
        raise FileError(path, f"the header declares an empty image of shape {tuple(shape)}")
    needed = prod(int(size) for size in shape) * int(itemsize)
    if not compressed and needed > stored:
        raise FileError(path, f"is cut short: {needed} bytes of pixels declared (shape {tuple(shape)}), {stored} there")
    if compressed and needed > _DEFLATE_RATIO * stored + _SLACK:
        raise FileError(path, f"declares {needed} bytes of pixels (shape {tuple(shape)}), impossible in {stored} bytes")


def check_memory(path: str | Path, needed: int) -> None:
    """Refuse what can't fit into this machine before trying.

    Raises:
        FileError: `needed` bytes are more than the machine has.
    """
    if not hasattr(os, "sysconf"):  # Windows doesn't tell so easily; there the allocation itself is refused
        return
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise FileError(
            path, f"needs {needed / 2**30:.1f} GiB, this machine has {available / 2**30:.1f}", "read a window of it"
        )


def _reason(error: Exception) -> str:
    """The last line of a library's message that says something, its middle cut out where it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TensorStore adds what it was asked for, in JSON, after what went wrong
    text = re.sub(r" \[(tensorstore_spec|source locations)=.*", "", lines[-1]) if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:70]} ... {text[-125:]}"

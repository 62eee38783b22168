"""Keeping libraries quiet and their errors one line long.

Whatever goes wrong inside `guarded(path)` leaves as a `FileError` that names the file; the library's own
warnings and log lines stay inside.
"""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelry.core.errors import FileError, MissingDependencyError, VoxelryError

__all__ = ["guarded"]

_CHATTY = ("tifffile", "pydicom", "nibabel", "nibabel.global", "PIL", "h5py", "SimpleITK")


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
    except MissingDependencyError:
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


def _reason(error: Exception) -> str:
    """The last line of a library's message that says something, its middle cut out where it is long."""
    if isinstance(error, KeyError):
        return f"lacks {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TensorStore adds what it was asked for, in JSON, after what went wrong
    text = re.sub(r" \[(tensorstore_spec|source locations)=.*", "", lines[-1]) if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:70]} ... {text[-125:]}"

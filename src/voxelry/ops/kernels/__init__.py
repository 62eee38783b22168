"""Compiled versions of operations; `voxelry.ops` chooses them, nothing else imports them.

Compiled code is kept beside these files, or in the user's own cache folder where that can't be written
(`NUMBA_CACHE_DIR` names another); where neither can, it is compiled again in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["jit"]

# No parallel=True: data-loader workers are processes already, and nogil lets threads share the work.
_OPTIONS = {"nogil": True, "error_model": "numpy"}


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` with Numba on its first call, without the interpreter lock, kept on disk if possible."""
    import numba  # half a second, which `dispatch` must not cost

    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # Numba found no folder to keep it in
        return numba.njit(**_OPTIONS)(function)

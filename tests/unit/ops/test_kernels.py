import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from voxelry.ops import kernels


def total(values):
    result = 0.0
    for value in values:
        result += value
    return result


def test_without_a_folder_to_keep_it_in_a_kernel_still_compiles(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options.pop("cache", False))
        if asked[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numba", SimpleNamespace(njit=njit))
        compiled = kernels.jit(total)
    assert compiled(np.arange(4.0)) == pytest.approx(6.0)
    assert asked == [True, False]

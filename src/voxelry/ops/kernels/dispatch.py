"""Which version of an operation runs: Numba on the CPU, Triton on a GPU, plain PyTorch everywhere.

All three give the same result; PyTorch's is the reference. Importing this file loads neither compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from voxelry.core.choice import check_choice

__all__ = ["Backend", "backend", "choose"]

Backend = Literal["numba", "triton", "torch"]

_forced: ContextVar[Backend | None] = ContextVar("voxelry_backend", default=None)


def choose(tensor: Tensor) -> Backend:
    """The version for data where `tensor` lies, unless `backend` forces one.

    "numba" on the CPU, "triton" on a CUDA or ROCm device where the package is installed, "torch" on every
    other device and while PyTorch traces the code to compile it.
    """
    forced = _forced.get()
    if forced is not None:
        return forced
    if torch.compiler.is_compiling():
        return "torch"
    if tensor.device.type == "cpu":
        return "numba"
    if tensor.device.type == "cuda" and _has_triton():
        return "triton"
    return "torch"


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Force one version inside the block, in this thread: for tests and benchmarks.

    "triton" takes CPU tensors under `TRITON_INTERPRET=1` alone; "numba" takes no others. A backward pass
    uses the version of its forward pass.

    Raises:
        SettingError: an unknown name.
    """
    check_choice("backend", name, get_args(Backend))
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None

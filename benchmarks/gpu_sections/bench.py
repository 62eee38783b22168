"""What the sections share: the device, and how time and memory are taken on it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.nn import nd

Figures = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Figures]]]

REPEATS = 5
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = ("channels-last", "contiguous")


@dataclass(frozen=True)
class Mode:
    """A number format and a memory layout."""

    dtype: str
    layout: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.layout}"

    def place(self, x: Tensor) -> Tensor:
        """`x` in this layout, if it is a map or a kernel."""
        if self.layout == "contiguous" or x.ndim not in (4, 5):
            return x.contiguous()
        return x.contiguous(memory_format=nd.channels_last(x.ndim - 2))

    def place_network(self, network: nn.Module) -> nn.Module:
        """`network` with its kernels in this layout, whatever their ranks."""
        for parameter in network.parameters():
            parameter.data = self.place(parameter.data)
        return network


@dataclass(frozen=True)
class Bench:
    """A device and how much is measured on it."""

    device: torch.device
    tiny: bool = False
    compiled: bool = False

    @property
    def modes(self) -> list[Mode]:
        """Every number format in every layout; one of the four in tiny runs."""
        if self.tiny:
            return [Mode("float32", "channels-last")]
        return [Mode(dtype, layout) for dtype in DTYPES for layout in LAYOUTS]

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """Mixed precision as a training has it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give back what the rows before have left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], *, calls: int = 1) -> float:
        """Median time of `work` after it has been warmed up; `calls` in a row count as one measurement."""
        for _ in range(0 if self.tiny else 3):
            work()
        times = []
        for _ in range(1 if self.tiny else REPEATS):
            self.wait()
            begin = time.perf_counter()
            for _ in range(1 if self.tiny else calls):
                work()
            self.wait()
            times.append((time.perf_counter() - begin) / (1 if self.tiny else calls))
        return statistics.median(times)

    def peak_gb(self, work: Callable[[], object]) -> float | None:
        """Memory at the peak of `work`, with what was there before; None on a CPU, where no one counts it."""
        if self.device.type != "cuda":
            return None
        self.release()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**30


def same(found: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest difference, in parts of the largest expected value.

    Raises:
        ValueError: it is above the tolerance.
    """
    difference = float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-9))
    if not difference <= tolerance:
        raise ValueError(f"results differ by {difference:.1e}, at most {tolerance:.0e} expected")
    return difference

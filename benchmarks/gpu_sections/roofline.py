"""How much of the device's bf16 peak the convolutions of the originals' U-Net reach, each alone and all in the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_sections.bench import LAYOUTS, Bench, Figures, Mode, Rows
from unet import build

CONVOLUTION, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


class Convolution(NamedTuple):
    """One call: the shapes of map and kernel, and which gradients it makes; none is the forward pass."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    last: bool  # the map in channels-last memory
    settings: tuple[Any, ...]  # stride, padding, dilation, transposed, output padding, groups
    gradients: tuple[bool, bool]

    @property
    def flops(self) -> float:
        """Products and sums; kernels beyond the border count as well."""
        stride, _, _, transposed, _, _ = self.settings
        cells = prod(self.x[2:]) if transposed else prod(s // step for s, step in zip(self.x[2:], stride, strict=True))
        return 2.0 * self.x[0] * cells * prod(self.weight) * max(sum(self.gradients), 1)

    def __str__(self) -> str:
        kind = {(False, False): "forward", (True, False): "of input", (False, True): "of weight"}
        sizes = "×".join(map(str, self.x[1:])) + " by " + "×".join(map(str, self.weight))
        stride = "" if max(self.settings[0]) == 1 else f" stride {max(self.settings[0])}"
        return f"{sizes}{stride} {kind.get(self.gradients, 'of both')}" + (" channels-last" if self.last else "")


class Collected(TorchDispatchMode):
    """Counts the convolutions that run inside, those of backward passes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Convolution] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function in (CONVOLUTION, BACKWARD):
            x, weight, _, *settings = arguments if function is CONVOLUTION else arguments[1:]
            wanted = (False, False) if function is CONVOLUTION else tuple(settings.pop()[:2])
            held = tuple(tuple(value) if isinstance(value, list) else value for value in settings)
            last = x.stride(1) == 1 and x.shape[1] > 1
            self.found[Convolution(tuple(x.shape), tuple(weight.shape), last, held, wanted)] += 1
        return function(*arguments, **(keywords or {}))


def convolutions(bench: Bench) -> Rows:
    """The peak, then each distinct convolution of a training step, then the step over the sum of them."""
    peaks: dict[str, float] = {}
    yield "peak: product of matrices", lambda: peak_of(bench, peaks, "product", matrix_product(bench))
    yield "peak: convolution", lambda: peak_of(bench, peaks, "convolution", wide_convolution(bench))
    for size in (8,) if bench.tiny else (64, 32):
        for mode in [Mode("bf16", layout) for layout in LAYOUTS[: 1 if bench.tiny else None]]:
            step = training_step(bench, size, mode)
            with Collected() as collected:
                step()
            alone: dict[Convolution, float] = {}
            most = sorted(collected.found, key=lambda one: -one.flops * collected.found[one])
            for one in most[:3] if bench.tiny else most:
                label = f"{size}³ {mode.layout}: {one}"
                yield label, lambda one=one, alone=alone, found=collected.found: share(bench, one, found, alone, peaks)
            yield (
                f"{size}³ {mode.layout}: step over its convolutions",
                lambda step=step, alone=alone, found=collected.found: whole(bench, step, found, alone, peaks),
            )


def training_step(bench: Bench, size: int, mode: Mode) -> Callable[[], None]:
    torch.manual_seed(0)
    network = mode.place_network(build("voxelry", "auto", narrow=bench.tiny).to(bench.device))
    x = mode.place(torch.randn(1, 1, size, size, size, device=bench.device))
    time = torch.tensor([10], device=bench.device)

    def step() -> None:
        with bench.autocast("bf16"):
            loss = network(x, time).float().square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    return step


def matrix_product(bench: Bench) -> tuple[Callable[[], object], float]:
    size = 128 if bench.tiny else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def wide_convolution(bench: Bench) -> tuple[Callable[[], object], float]:
    channels, size = (16, 8) if bench.tiny else (512, 64)
    one = Convolution(
        (1, channels, size, size, size), (channels, channels, 3, 3, 3), True,
        ((1,) * 3, (1,) * 3, (1,) * 3, False, (0,) * 3, 1), (False, False),
    )  # fmt: skip
    return runner(bench, one), one.flops


def peak_of(bench: Bench, peaks: dict[str, float], name: str, work: tuple[Callable[[], object], float]) -> Figures:
    call, flops = work
    peaks[name] = flops / bench.seconds(call, calls=10)
    return {"tflops": peaks[name] / 1e12}


def runner(bench: Bench, one: Convolution) -> Callable[[], object]:
    """The convolution alone, on random bf16 values in its own layout."""
    mode = Mode("bf16", "channels-last" if one.last else "contiguous")
    x, weight = (
        mode.place(torch.randn(shape, device=bench.device, dtype=torch.bfloat16)) for shape in (one.x, one.weight)
    )
    settings = [list(value) if isinstance(value, tuple) else value for value in one.settings]
    with torch.no_grad():
        result = CONVOLUTION(x, weight, None, *settings)
    if not any(one.gradients):
        return lambda: CONVOLUTION(x, weight, None, *settings)
    grad = mode.place(torch.randn_like(result))
    return lambda: BACKWARD(grad, x, weight, None, *settings, [*one.gradients, False])


def share(
    bench: Bench,
    one: Convolution,
    found: Counter[Convolution],
    alone: dict[Convolution, float],
    peaks: dict[str, float],
) -> Figures:
    alone[one] = bench.seconds(runner(bench, one), calls=10)
    rate = one.flops / alone[one]
    return {"times": found[one], "ms": 1e3 * alone[one], "tflops": rate / 1e12} | of_peaks(rate, peaks)


def whole(
    bench: Bench,
    step: Callable[[], None],
    found: Counter[Convolution],
    alone: dict[Convolution, float],
    peaks: dict[str, float],
) -> Figures:
    """The step, the sum of its convolutions timed alone, and what share of the peak all of it reaches."""
    if not alone:
        raise ValueError("none of its convolutions was timed")
    taken, parts = bench.seconds(step), sum(found[one] * value for one, value in alone.items())
    rate = sum(found[one] * one.flops for one in alone) / taken
    return {
        "times": f"{sum(found[one] for one in alone)} of {sum(found.values())}",
        "ms": 1e3 * taken,
        "convolutions_ms": 1e3 * parts,
        "step/convolutions": taken / parts,
        "tflops": rate / 1e12,
    } | of_peaks(rate, peaks)


def of_peaks(rate: float, peaks: dict[str, float]) -> Figures:
    return {f"share of {name}": rate / peak for name, peak in peaks.items()}

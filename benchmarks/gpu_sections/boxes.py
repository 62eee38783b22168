"""RoIAlign and suppression: Triton's, plain PyTorch's, and in 2-D torchvision's, compared before they are timed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpu_sections.bench import DTYPES, Bench, Figures, Rows, same
from nms import THRESHOLD, crowd
from roi_align import BINS, CHANNELS, RATIO, ROIS, SIZE, strewn
from voxelry.ops.kernels.dispatch import Backend, backend
from voxelry.ops.nms import nms
from voxelry.ops.roi_align import roi_align

Call = Callable[[Tensor, Tensor], Tensor]


def roi_align_and_nms(bench: Bench) -> Rows:
    """In both ranks, with the sizes of `benchmarks/roi_align.py` and `benchmarks/nms.py`."""
    for ndim in (2, 3):
        for dtype in ("float32",) if bench.tiny else DTYPES:
            yield f"roi_align {ndim}-D {dtype}", lambda ndim=ndim, dtype=dtype: aligned(bench, ndim, dtype)
        for count in (40,) if bench.tiny else (1000, 2000, 5000, 20000):
            yield f"nms {ndim}-D {count}", lambda ndim=ndim, count=count: suppressed(bench, ndim, count)


def aligned(bench: Bench, ndim: int, dtype: str) -> Figures:
    """Forward, and forward and backward, of each version that is here."""
    torch.manual_seed(0)
    channels, size, count, bins = (2, 4, 2, 2) if bench.tiny else (CHANNELS, SIZE, ROIS, BINS)
    features = torch.randn(1, channels, *(size,) * ndim, device=bench.device, dtype=DTYPES[dtype]).requires_grad_()
    boxes = strewn(count, size, (1, 2) if bench.tiny else (6, 16), ndim=ndim).to(bench.device)
    weight = torch.randn(count, channels, *(bins,) * ndim, device=bench.device, dtype=DTYPES[dtype])
    figures: Figures = {}
    expected: tuple[Tensor, Tensor] | None = None
    for name, call in versions_of(bench, ndim, partial(aligner, bins), partial(align_of_torchvision, bins)).items():

        def both(call: Call = call) -> tuple[Tensor, Tensor]:
            out = call(features, boxes)
            return out.detach(), torch.autograd.grad(out, features, weight)[0]

        try:
            found = both()
            if expected is None:
                expected = found
            for one, other in zip(found, expected, strict=True):
                same(one, other, 1e-4 if dtype == "float32" else 2e-2)
        except Exception as error:  # one version that can't run leaves the others to be measured
            figures[name] = " ".join(str(error).split())[:100]
            continue
        figures |= {
            f"{name}_forward_ms": 1e3 * bench.seconds(lambda call=call: call(features.detach(), boxes)),
            f"{name}_both_ms": 1e3 * bench.seconds(both),
            f"{name}_gb": bench.peak_gb(both),
        }
    return figures


def suppressed(bench: Bench, ndim: int, count: int) -> Figures:
    """The same boxes through every version that is here; they must keep the same."""
    boxes, scores = (values.to(bench.device) for values in crowd(count, ndim))
    figures: Figures = {}
    expected: Tensor | None = None
    for name, call in versions_of(bench, ndim, suppressor, nms_of_torchvision).items():
        try:
            kept = call(boxes, scores)
            expected = kept if expected is None else expected
            if not torch.equal(kept, expected):
                raise ValueError(f"keeps {len(kept)} boxes, {len(expected)} or others expected")
        except Exception as error:  # as above
            figures[name] = " ".join(str(error).split())[:100]
            continue
        figures |= {"kept": len(kept), f"{name}_ms": 1e3 * bench.seconds(lambda call=call: call(boxes, scores))}
    return figures


def versions_of(bench: Bench, ndim: int, own: Callable[[Backend], Call], peer: Callable[[], Call]) -> dict[str, Call]:
    """Plain PyTorch first, which the others are compared with."""
    found = {"torch": own("torch")}
    if bench.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        found["triton"] = own("triton")
    if ndim == 2:
        found["torchvision"] = lambda *inputs: peer()(*inputs)
    return found


def aligner(bins: int, name: Backend) -> Call:
    def call(features: Tensor, boxes: Tensor) -> Tensor:
        image = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        with backend(name):
            return roi_align(features, boxes, image, bins, sampling_ratio=RATIO)

    return call


def suppressor(name: Backend) -> Call:
    def call(boxes: Tensor, scores: Tensor) -> Tensor:
        with backend(name):
            return nms(boxes, scores, THRESHOLD)

    return call


def align_of_torchvision(bins: int) -> Call:
    from torchvision.ops import roi_align as peer

    def call(features: Tensor, boxes: Tensor) -> Tensor:
        columns = boxes[:, [1, 0, 3, 2]].to(features.dtype)  # it has x before y
        return peer(features, [columns], bins, sampling_ratio=RATIO)

    return call


def nms_of_torchvision() -> Call:
    from torchvision.ops import nms as peer

    return lambda boxes, scores: peer(boxes[:, [1, 0, 3, 2]], scores, THRESHOLD)

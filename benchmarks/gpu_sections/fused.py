"""Normalisation, SiLU and convolution that keep one tensor, against plain PyTorch, shape by shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpu_sections.bench import DTYPES, Bench, Figures, Mode, Rows, same
from voxelry.nn import nd
from voxelry.nn.lean.fused import norm_silu_conv

SHAPES = ((32, 64), (64, 64), (64, 32), (128, 32), (128, 16), (256, 16))  # channels, voxels per axis


def norm_silu_convolution(bench: Bench) -> Rows:
    """Forward and backward with and without recomputation, and their ratio, with the shapes of our U-Nets."""
    for channels, size in ((8, 8),) if bench.tiny else SHAPES:
        for mode in bench.modes:
            label = f"{channels} channels {size}³ {mode}"
            yield label, lambda channels=channels, size=size, mode=mode: both(bench, channels, size, mode)


def both(bench: Bench, channels: int, size: int, mode: Mode) -> Figures:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, channels).to(bench.device)
    conv = mode.place_network(nd.conv(3)(channels, channels, 3, padding=1).to(bench.device))
    x = mode.place(torch.randn(1, channels, size, size, size, device=bench.device, dtype=DTYPES[mode.dtype]))
    x.requires_grad_()
    leaves = [x, *norm.parameters(), *conv.parameters()]

    def run(recompute: bool) -> tuple[Tensor, ...]:
        with bench.autocast(mode.dtype):
            out = norm_silu_conv(x, norm, conv.weight, conv.bias, padding=(1, 1, 1), recompute=recompute)
        return out.detach(), *torch.autograd.grad(out.float().square().mean(), leaves)

    tolerance = 1e-3 if mode.dtype == "float32" else 5e-2
    difference = max(same(one, other, tolerance) for one, other in zip(run(True), run(False), strict=True))
    figures: Figures = {"difference": difference}
    for name, recompute in (("lean", True), ("plain", False)):
        figures[f"{name}_ms"] = 1e3 * bench.seconds(lambda recompute=recompute: run(recompute))
        figures[f"{name}_gb"] = bench.peak_gb(lambda recompute=recompute: run(recompute))
    return figures | {"lean/plain": figures["lean_ms"] / figures["plain_ms"]}

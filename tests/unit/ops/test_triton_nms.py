"""The GPU's version of suppression, in Triton's interpreter and through its compiler, each in its own process."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

COMPARE = """
import torch
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.nms import batched_nms, cluster, nms

torch.manual_seed(0)
compared = 0
for ndim, count, dtype, grid, threshold in [
    (1, 5, torch.float32, True, 0.0),
    (2, 64, torch.float32, True, 0.3),
    (2, 65, torch.float64, False, 0.3),
    (3, 130, torch.float32, True, 0.7),
    (3, 70, torch.float16, False, 0.2),
    (3, 0, torch.float32, False, 0.5),
]:
    low = torch.randint(0, 12, (count, ndim)) if grid else torch.rand(count, ndim) * 12
    extent = torch.randint(0, 7, (count, ndim)) if grid else torch.rand(count, ndim) * 7
    boxes = torch.cat([low, low + extent], dim=1).to(dtype)
    scores = torch.randint(0, 20, (count,)) / 20
    groups = torch.randint(-1, 2, (count,))
    if count:
        boxes[count // 2, 0] = torch.nan
    with backend("torch"):
        expected = nms(boxes, scores, threshold), batched_nms(boxes, scores, groups, threshold)
    with backend("triton"):
        found = nms(boxes, scores, threshold), batched_nms(boxes, scores, groups, threshold)
    assert all(map(torch.equal, found, expected)), (ndim, count, dtype, threshold)
    compared += 1
with backend("triton"):
    assert cluster(boxes, scores, 0.5).tolist() == []
print("compared", compared)
"""

BEYOND = """
import torch
from voxelry.ops.kernels import triton_nms
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.nms import nms

boxes, scores = torch.rand(40, 6) + torch.tensor([0.0] * 3 + [1.0] * 3), torch.rand(40)
with backend("numba"):
    expected = nms(boxes, scores, 0.1)
triton_nms.LIMIT = 39
triton_nms.survivors = None
with backend("triton"):
    assert torch.equal(nms(boxes, scores, 0.1), expected)
print("compared 1")
"""

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from voxelry.ops.kernels import triton_nms

for kind in ("fp32", "fp64"):
    table = ASTSource(
        triton_nms._tabulate,
        signature={"boxes": "*" + kind, "groups": "*i64", "threshold": "*" + kind, "words": "*i64", "count": "i32",
                   "width": "i32", "NDIM": "constexpr", "SIZE": "constexpr"},
        constexprs={"NDIM": 3, "SIZE": 64},
    )
    text = compile(table, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}).asm["ptx"]
    assert "div.rn" in text and "fma.rn.f" not in text, "rounded otherwise than on the CPU"
sweep = ASTSource(
    triton_nms._resolve,
    signature={"words": "*i64", "suppressed": "*i64", "count": "i32", "width": "i32", "SIZE": "constexpr",
               "WIDTH": "constexpr"},
    constexprs={"SIZE": 64, "WIDTH": 64},
)
options = {"num_warps": 8, "enable_fp_fusion": False}
assert "bar.sync" in compile(sweep, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]
print("compiled")
"""


def run(program, tmp_path, **variables):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **variables}
    if "TRITON_INTERPRET" not in variables:
        environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_interpreter_keeps_the_same(tmp_path):
    # one after the other in one process, as loading Triton takes longest
    assert run(COMPARE + BEYOND, tmp_path, TRITON_INTERPRET="1") == ["compared", "6", "compared", "1"]


def test_the_kernels_compile_and_round_as_the_cpu_does(tmp_path):
    assert run(COMPILE, tmp_path) == ["compiled"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_gpu_keeps_the_same(ndim):
    from voxelry.ops.nms import nms

    low = torch.rand(3000, ndim) * 100
    boxes, scores = torch.cat([low, low + torch.rand(3000, ndim) * 20], dim=1), torch.rand(3000)
    for threshold in (0.1, 0.5):
        assert torch.equal(nms(boxes.cuda(), scores.cuda(), threshold).cpu(), nms(boxes, scores, threshold))

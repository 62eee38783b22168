"""The GPU benchmark runs without a GPU: every section, tiny, with Triton's interpreter, and without its peers."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[3]
PEERS = ("monai", "torchvision")


def test_every_section_gives_figures_or_says_why_not(tmp_path):
    for name in PEERS:
        (tmp_path / f"{name}.py").write_text('raise ImportError("not installed here")\n')
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", "--minutes", "8"]
    subprocess.run([*command, "--out", str(tmp_path / "gpu.json")], check=True, env=environment, capture_output=True)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert all("not installed here" in report["machine"][name] for name in PEERS)
    reasons = {}
    for name, section in report["sections"].items():
        assert any("reason" not in row for row in section["rows"]), (name, section["rows"])
        reasons |= {row["what"]: row["reason"] for row in section["rows"] if "reason" in row}
    assert set(report["sections"]) == {
        "networks", "unet", "roofline", "memory", "boxes", "detection", "volumes", "fused",
    }  # fmt: skip
    assert reasons == {"monai 8³ float32 channels-last": "ImportError: not installed here"}
    boxes = {row["what"]: row for row in report["sections"]["boxes"]["rows"]}
    for ndim in (2, 3):
        aligned, suppressed = boxes[f"roi_align {ndim}-D float32"], boxes[f"nms {ndim}-D 40"]
        assert aligned["torch_both_ms"] > 0
        assert suppressed["kept"] > 0
        if find_spec("triton"):
            assert aligned["triton_both_ms"] > 0
            assert suppressed["triton_ms"] > 0
    assert "not installed here" in boxes["nms 2-D 40"]["torchvision"]

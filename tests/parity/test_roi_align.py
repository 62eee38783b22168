"""RoIAlign against torchvision in 2-D and a float64 eight-corner loop in 3-D (`detection_ops`).

The 2-D file comes from torchvision's Python version, which repeats the edge outside; the 3-D one has zeros there.
"""

import pytest
import torch
from safetensors.torch import load_file

from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.roi_align import roi_align

XYXY_TO_YXYX = [1, 0, 3, 2]


@pytest.fixture(scope="module")
def reference(golden):
    return load_file(golden / "detection_ops.safetensors")


@pytest.mark.parametrize("name", ["numba", "torch"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_outputs(reference, ndim, aligned, ratio, name):
    features, output_size = reference[f"roi_align_{ndim}d.input"], {2: (5, 4), 3: (3, 4, 2)}[ndim]
    rois = reference[{2: "roi_align_2d.rois", 3: "roi_align_3d.rois_zyx"}[ndim]]
    expected = reference[f"roi_align_{ndim}d.output.aligned_{aligned}.ratio_{ratio}"]
    boxes = rois[:, 1:][:, XYXY_TO_YXYX] if ndim == 2 else rois[:, 1:]
    settings = {"scale": 0.5, "sampling_ratio": ratio, "aligned": aligned}
    settings["outside"] = {2: "edge", 3: "zero"}[ndim]
    with backend(name):
        found = roi_align(features, boxes, rois[:, 0].long(), output_size, **settings)
        precise = roi_align(features.double(), boxes, rois[:, 0].long(), output_size, **settings)
    torch.testing.assert_close(found, expected.float(), atol=3e-6, rtol=0)
    torch.testing.assert_close(precise, expected.double(), atol=3e-6 if ndim == 2 else 1e-6, rtol=0)


@pytest.mark.parametrize("aligned", [False, True])
def test_both_ways_outside_agree_inside(reference, aligned):
    features, rois = reference["roi_align_2d.input"], reference["roi_align_2d.rois"]
    inside = (rois[:, 3] <= 49) & (rois[:, 4] <= 41)  # no sample further out than a cell
    assert inside.any()
    boxes, batch = rois[inside][:, 1:][:, XYXY_TO_YXYX], rois[inside, 0].long()
    expected = reference[f"roi_align_2d.output.aligned_{aligned}.ratio_2"][inside]
    found = roi_align(features, boxes, batch, (5, 4), scale=0.5, aligned=aligned)
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)

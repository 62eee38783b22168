"""Boxes, suppression and pasted masks against the originals' file, and against MONAI."""

import json

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from voxelry.ops.boxes import convert, decode, encode, giou, iou, pyramid_level
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.nms import nms


@pytest.fixture(scope="module")
def known(golden):
    with safe_open(golden / "detection_ops.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["case"])  # noqa: SIM118


def ours(boxes):
    return convert(boxes, "torchvision", "voxelry", ndim=2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_iou(known, ndim):
    boxes = known[0][f"nms_{ndim}d.boxes"]
    assert torch.equal(iou(boxes[:20], boxes[20:50]), known[0][f"iou_{ndim}d"])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("version", ["numba", "torch"])
def test_nms(known, ndim, version):
    tensors, _ = known
    with backend(version):
        kept = nms(tensors[f"nms_{ndim}d.boxes"], tensors[f"nms_{ndim}d.scores"], 0.3)
    assert torch.equal(kept, tensors[f"nms_{ndim}d.keep_iou_0.3"])


def test_box_coder(known):
    tensors, case = known
    horizontal, vertical, width, height = case["coder_2d"]["weights"]
    weights = ((vertical, horizontal), (height, width))
    columns = [1, 0, 3, 2]
    proposals, references = ours(tensors["coder_2d.proposals_xyxy"]), ours(tensors["coder_2d.reference_xyxy"])
    codes, known_codes = encode(references, proposals, weights), tensors["coder_2d.codes_xywh"][:, columns]
    assert torch.equal(codes[:, :2], known_codes[:, :2])
    last_bit = {"rtol": 3e-7, "atol": 1e-7}  # of logarithms and exponentials, which processors round differently
    assert_close(codes[:, 2:], known_codes[:, 2:], **last_bit)
    wild = decode(tensors["coder_2d.wild_codes"][:, columns], proposals, weights)
    assert_close(wild, ours(tensors["coder_2d.decoded_wild_xyxy"]), **last_bit)


def test_mask_pasting(known, torchvision_paste):
    tensors, case = known
    found = torchvision_paste(
        tensors["paste_2d.masks"], ours(tensors["paste_2d.boxes_xyxy"]), case["paste_2d"]["image"]
    )
    assert_close(found, tensors["paste_2d.output"], atol=1e-6, rtol=0)


def test_level_mapping(known):
    """The file counts levels from the lowest, 2."""
    tensors, case = known
    found = pyramid_level(ours(tensors["levels_2d.boxes_xyxy"]), k_min=2, k_max=5, **case["levels_2d"])
    assert torch.equal(found - 2, tensors["levels_2d.level_k2_k5"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_overlaps_are_monais(ndim):
    """MONAI adds an epsilon to the union, hence the tolerance."""
    box_utils = pytest.importorskip("monai.data.box_utils")
    low = torch.rand(60, ndim) * 20
    boxes = torch.cat([low, low + torch.rand(60, ndim) * 12 + 1], dim=1)
    assert_close(iou(boxes, boxes[:40]), box_utils.box_iou(boxes, boxes[:40]), atol=1e-6, rtol=0)
    assert_close(giou(boxes[:, None], boxes[:40]), box_utils.box_giou(boxes, boxes[:40]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_keep_sets_are_monais(ndim):
    box_utils = pytest.importorskip("monai.data.box_utils")
    low = torch.rand(400, ndim) * 60
    boxes, scores = torch.cat([low, low + torch.rand(400, ndim) * 20 + 2], dim=1), torch.rand(400)
    for threshold in (0.1, 0.3, 0.6):
        assert (
            nms(boxes, scores, threshold).tolist() == box_utils.non_max_suppression(boxes, scores, threshold).tolist()
        )

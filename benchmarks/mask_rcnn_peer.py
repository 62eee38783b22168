"""Mask R-CNN at rank 2 beside torchvision's: same weights, same picture, alternately in one process.

torchvision's compiled operators don't load with the CPU build of PyTorch that is used here: its Python is what runs,
and suppression and RoIAlign are put in their place, by default ours, so that what is compared is everything else. With
`--stand-ins plain` they are plain PyTorch: suppression box by box, RoIAlign torchvision's own Python. Both sides draw
the same samples; losses and detections are compared first.

    pip install --no-deps --target /tmp/torchvision torchvision
    python benchmarks/mask_rcnn_peer.py --torchvision /tmp/torchvision [--size 256 256] [--objects 40] [--repeats 5]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mask_rcnn import objects
from voxelry.interop import from_reference
from voxelry.ops.boxes import convert, iou
from voxelry.ops.nms import nms
from voxelry.ops.roi_align import roi_align

CLASSES = 91


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppression, one kept box after the other."""
    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        kept.append(order[0])
        order = order[1:][iou(boxes[order[:1]], boxes[order[1:]])[0] <= threshold]
    return torch.stack(kept) if kept else order


def our_roi_align(
    features: Tensor, boxes: Any, output_size: Any, spatial_scale: float = 1.0, sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:  # fmt: skip
    """`torchvision.ops.roi_align` by ours."""
    return roi_align(
        features,
        convert(boxes[:, 1:], "torchvision", "voxelry", ndim=2),
        boxes[:, 0].long(),
        output_size,
        scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


def prepare(folder: str, stand_ins: str) -> Any:
    """torchvision, imported from a folder, with operators that run."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # that its import looks for
    library.impl("nms", nms if stand_ins == "ours" else plain_nms, "CPU")
    sys.path.append(folder)
    import torchvision

    torchvision.extension._assert_has_ops = torchvision.ops.boxes._assert_has_ops = lambda: None
    if stand_ins == "ours":
        torchvision.ops.poolers.roi_align = torchvision.models.detection.roi_heads.roi_align = our_roi_align
    torchvision.library_of_stand_ins = library  # it lives as long as what it registers is needed
    return torchvision


def processor_time(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchvision", required=True, help="folder that torchvision was installed to")
    parser.add_argument("--stand-ins", choices=("ours", "plain"), default="ours")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--objects", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torchvision = prepare(options.torchvision, options.stand_ins)
    torch.manual_seed(0)
    size = tuple(options.size)
    limits = {"min_size": min(size), "max_size": max(size), "box_score_thresh": 0.0}  # weights that know nothing
    peer = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, **limits
    )
    ours = from_reference("torchvision-maskrcnn", limits, peer.state_dict())
    image = torch.rand(3, *size)
    boxes, ids = objects(2, size, options.objects)
    boxes = [one.clamp(min=0) for one in boxes]
    masks = (ids == torch.arange(1, options.objects + 1)[:, None, None]).to(torch.uint8)
    classes = torch.randint(1, CLASSES, (options.objects,))
    target = {"boxes": convert(boxes[0], "voxelry", "torchvision", ndim=2), "labels": classes, "masks": masks}

    def train(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        found: dict[str, Tensor]
        found = peer([image], [target]) if network is peer else ours.losses([image], boxes, [classes], [masks])
        sum(found.values()).backward()
        network.zero_grad(set_to_none=True)
        return found

    def detect(network: Any) -> Any:
        with torch.no_grad():
            return network([image])

    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}, {options.threads} threads, {size}")
    for name, work in (("training step", train), ("detection", detect)):
        for network in (ours, peer):
            network.train(name == "training step")
        found, expected = work(ours), work(peer)
        if name == "training step":
            for key, value in expected.items():
                print(f"{key:20s} {found[key].item():.6f} and {value.item():.6f}")
        else:
            print(f"{len(found[0])} and {len(expected[0]['boxes'])} detections")
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(options.repeats):
            for network in (ours, peer):
                seconds[network is ours].append(processor_time(lambda work=work, network=network: work(network)))
        least, theirs = min(seconds[True]), min(seconds[False])
        print(f"{name:20s} ours {least:.3f} s, torchvision {theirs:.3f} s, {least / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main()

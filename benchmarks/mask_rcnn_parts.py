"""Where the time of a training step of Mask R-CNN goes: processor time of every part, forward and backward.

The step is taken apart: each part gets what the one before answered, cut from its graph, so that its way back can be
timed alone. Optimizer (AdamW) and moving average are parts, too. Least of several repeats, one process.

    python benchmarks/mask_rcnn_parts.py [--network volume_training] [--repeats 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mask_rcnn import RUNS, build, objects, picture
from voxelry.models.mask_rcnn import anchors as anchor_grids
from voxelry.models.mask_rcnn import rpn as proposals_of


class Clock:
    """Processor time by part, the least of several steps."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        """A step begins."""
        self.steps.append(defaultdict(float))

    def __call__(self, part: str, work: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """What the work answers; its time is that of a part."""
        begin = time.process_time()
        found = work(*args, **keywords)
        self.steps[-1][part] += time.process_time() - begin
        return found

    def least(self) -> dict[str, float]:
        """Seconds of every part; the first step, which compiles, doesn't count."""
        return {part: min(step.get(part, 0.0) for step in self.steps[1:]) for part in self.steps[-1]}


def cut(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values as leaves of a graph of their own."""
    return {name: value.detach().requires_grad_() for name, value in found.items()}


def back(outputs: list[Tensor], leaves: list[Tensor]) -> None:
    """What came back to the leaves goes on through what they were cut from."""
    pairs = [(out, leaf.grad) for out, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
    torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])


def step(clock: Clock, network: Any, image: Tensor, boxes: list[Tensor], masks: Tensor) -> None:
    """One training step, part by part."""
    clock.step()
    rpn, box, mask = network.rpn, network.box_branch, network.mask_branch
    batch = clock("transform", network.transform, list(image), boxes, list(masks), draw=True)
    body = clock("backbone", network.backbone.backbone, batch.image)
    levels = cut(body)
    features = clock("pyramid", network.backbone.pyramid, levels)
    maps = cut(features)
    strides, scales = network.steps(batch, features)
    objectness, deltas = clock("rpn head", rpn.head, list(maps.values()))
    cut_objectness, cut_deltas = ([one.detach().requires_grad_() for one in part] for part in (objectness, deltas))
    grids = clock("anchors", anchor_grids.Anchors.of, rpn.shapes, list(maps.values()), strides)
    plain = proposals_of.match, proposals_of.batched_nms
    proposals_of.match = lambda *args, **keywords: clock("  of which matching", plain[0], *args, **keywords)
    proposals_of.batched_nms = lambda *args, **keywords: clock("  of which NMS", plain[1], *args, **keywords)
    found = clock("proposals", rpn.propose, cut_objectness, cut_deltas, grids, batch.shapes, training=True)
    rpn_losses = clock("rpn losses", rpn.compare, cut_objectness, cut_deltas, grids, batch.boxes)
    proposals_of.match, proposals_of.batched_nms = plain
    chosen = [maps[name] for name in network.roi_levels]
    kinds = [torch.ones(len(one), dtype=torch.int64) for one in boxes]
    regions = clock("box sampling", box.sample, [one for one, _ in found], batch.boxes, kinds)
    pooled = clock("box RoIAlign", box.pool, chosen, scales, regions.boxes, regions.batch_index)
    cut_pooled = pooled.detach().requires_grad_()
    logits, guesses = clock("box head", lambda: box.predictor(box.head(cut_pooled)))
    positive = torch.where(regions.classes > 0)[0]
    losses = clock(
        "box losses",
        lambda: (
            F.cross_entropy(logits, regions.classes)
            + proposals_of.sparse_box_loss(guesses[positive, 1], regions.deltas[positive], len(logits))
        ),
    )
    where, images = regions.boxes[positive], regions.batch_index[positive]
    goals = clock(
        "mask targets",
        lambda: torch.cat(
            [
                mask.goals(ids, regions.matched[positive[images == place]], where[images == place])
                for place, ids in enumerate(batch.masks)
            ]
        ),
    )
    mask_pooled = clock("mask RoIAlign", mask.pool, chosen, scales, where, images)
    cut_mask = mask_pooled.detach().requires_grad_()
    answers = clock("mask head", mask.logits, cut_mask, regions.classes[positive])
    mask_loss = clock("mask loss", F.binary_cross_entropy_with_logits, answers.float(), goals)

    clock("mask head, back", mask_loss.backward)
    clock("mask RoIAlign, back", back, [mask_pooled], [cut_mask])
    clock("box head, back", losses.backward)
    clock("box RoIAlign, back", back, [pooled], [cut_pooled])
    clock("rpn losses, back", sum(rpn_losses.values()).backward)
    clock("rpn head, back", back, [*objectness, *deltas], [*cut_objectness, *cut_deltas])
    clock("pyramid, back", back, list(features.values()), list(maps.values()))
    clock("backbone, back", back, list(body.values()), list(levels.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[name for name in RUNS if "training" in name], default="volume_training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape, count = picture(options.network, 64)
    network = build(options.network).train()
    average = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), foreach=True)
    image = torch.randn(1, network.backbone.in_channels, *shape)
    boxes, masks = objects(len(shape), shape, count)
    clock = Clock()
    for _ in range(options.repeats + 1):
        torch.manual_seed(1)
        step(clock, network, image, boxes, masks)
        clock("optimizer", optimizer.step)
        clock("moving average", torch._foreach_lerp_, average, list(network.parameters()), 0.01)
        optimizer.zero_grad(set_to_none=True)
    least = clock.least()
    total = sum(seconds for part, seconds in least.items() if not part.startswith(" "))
    for part, seconds in least.items():
        print(f"{part:24s} {1e3 * seconds:9.1f} ms  {seconds / total:6.1%}")
    print(f"{'all':24s} {1e3 * total:9.1f} ms")


if __name__ == "__main__":
    main()

"""The segmentation task: it learns, it says what is wrong with annotations, and it comes back from its settings."""

import json

import numpy as np
import pytest
import torch

from voxelry.backbones.fpn import FPN
from voxelry.backbones.resnet import ResNet
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.sample import Sample
from voxelry.io import read_image
from voxelry.metrics.instances import instance_row
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.models.mask_rcnn.detections import Detections
from voxelry.ops.instances import Instances, from_labels
from voxelry.ops.masks import mask_boxes
from voxelry.phantoms.nuclei import make_nuclei
from voxelry.tasks.segment import SegmentTask
from voxelry.tasks.segment.baseline import Watershed
from voxelry.tasks.segment.decode import decode
from voxelry.tasks.segment.detect import Detector
from voxelry.tasks.segment.outputs import write_instances
from voxelry.tasks.segment.targets import anchors_for, make_targets


def detector(ndim: int = 2, *, classes: int = 2, **settings) -> MaskRCNN:
    body = ResNet(
        ndim=ndim,
        layers=(1, 1),
        levels=("p2", "p3"),
        width=8,
        stem_kernel=3,
        stem_stride=2,
        pool_stride=None,
        stage_strides=(1, 2),
        norm="group",
    )
    small = {
        "anchors": {"sizes": [[14.0], [24.0]], "ratios": [1.0], "z_ratios": [1.0]},
        "rpn": {"fg_iou_thresh": 0.5},
        "box": {"channels": 32, "output_size": 4},
        "mask": {"convs": (8,), "output_size": 6},
        "regions": {"canonical_size": 24.0, "canonical_level": 1.0},
    }
    return MaskRCNN(FPN(body, out_channels=16, extra=None), num_classes=classes, **small | settings)


def discs(*, name: str = "case", spacing: tuple[float, float] = (1.0, 1.0)) -> Sample:
    """Three bright discs of 14 voxels, two of them touching."""
    rows, columns = np.mgrid[:64, :64]
    masks = np.zeros((64, 64), dtype=np.int64)
    for number, (row, column) in enumerate([(18, 16), (18, 30), (46, 40)], start=1):
        masks[(rows - row) ** 2 + (columns - column) ** 2 < 49] = number
    generator = np.random.default_rng(3)
    image = 0.7 * (masks > 0) + generator.normal(0, 0.05, masks.shape) + 0.1
    ids = torch.from_numpy(masks)
    return Sample(
        image=torch.from_numpy(image[None]).float().clamp(0, 1),
        space=Space.from_spacing((64, 64), spacing),
        name=name,
        source=f"{name}.png",
        boxes=mask_boxes(ids, 3),
        masks=ids,
    )


@pytest.fixture(scope="module")
def learned() -> tuple[SegmentTask, list[float]]:
    """A task that has seen the discs, and its losses."""
    torch.manual_seed(0)
    task = SegmentTask(detector())
    batch = collate([discs()])
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = task.training_loss(batch)["loss"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return task.eval(), losses


def test_it_learns_to_find_and_outline_objects(learned):
    task, losses = learned
    batch = collate([discs()])
    assert losses[-1] < 0.4 * losses[0]
    (prediction,) = task.predict(batch)
    (row,) = task.metrics([prediction], batch)
    assert row["ap_50"] == 1.0
    assert row["mean_iou_50"] > 0.75
    assert prediction.label_volume.max() == 3
    assert task.summary([row])["ap_50"] == 1.0
    assert len(prediction.candidates) >= len(prediction)


def test_losses_are_the_network_s_and_their_weighted_sum():
    task = SegmentTask(detector(), loss_weights={"mask": 3.0})
    losses = task.training_loss(collate([discs()]))
    parts = {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert set(losses) == {"loss", *parts}
    expected = sum(losses[name] * (3 if name == "mask" else 1) for name in parts)
    torch.testing.assert_close(losses["loss"], expected)


def test_a_weight_of_an_unknown_loss_is_refused():
    with pytest.raises(SettingError, match="no loss dice"):
        SegmentTask(detector(), loss_weights={"dice": 1.0}).training_loss(collate([discs()]))


def test_vanished_instances_are_dropped_and_the_rest_renumbered():
    sample = discs()
    boxes = sample.boxes.clone()
    boxes[1] = torch.nan
    targets = make_targets(collate([sample.replace(boxes=boxes)]), 1)
    torch.testing.assert_close(targets.boxes[0], sample.boxes[[0, 2]])
    expected = torch.tensor([0, 1, 0, 2])[sample.masks]
    assert torch.equal(targets.masks[0], expected)
    assert targets.classes[0].tolist() == [1, 1]


def test_an_image_without_objects_can_be_learned_from():
    empty = discs().replace(masks=torch.zeros(64, 64, dtype=torch.int64), boxes=torch.zeros(0, 4))
    assert torch.isfinite(SegmentTask(detector()).training_loss(collate([empty]))["loss"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"boxes": None, "masks": None}, "case: no instances"),
        ({"boxes": torch.tensor([[3.0, 4.0, 3.0, 9.0]]).repeat(3, 1)}, "case: the box of instance 1 has no volume"),
        ({"boxes": torch.tensor([[70.0, 4.0, 80.0, 9.0]]).repeat(3, 1)}, "case: the box of instance 1 lies outside"),
        ({"boxes": torch.tensor([[3.0, 4.0, 8.0, 9.0]])}, "case: an instance id 3, but there are 1 boxes"),
        ({"boxes": torch.tensor([[3.0, 4.0, 5.0, 8.0, 9.0, 9.0]]).repeat(3, 1)}, "boxes of 6 numbers; expected 4"),
    ],
)
def test_annotations_that_can_t_be_learned_from_are_refused_by_name(change, fault):
    with pytest.raises(DataError, match=fault):
        SegmentTask(detector()).training_loss(collate([discs().replace(**change)]))


@pytest.mark.parametrize(("classes", "fault"), [([1, 2, 3], "class 3; expected 1 to 2"), ([1, 0, 2], "class 0")])
def test_unknown_classes_are_refused(classes, fault):
    task = SegmentTask(detector(classes=3), class_names=["round", "square"])
    with pytest.raises(DataError, match=fault):
        task.training_loss(collate([discs().replace(classes=torch.tensor(classes))]))


def test_with_one_name_every_class_is_that_one():
    batch = collate([discs().replace(classes=torch.tensor([4, 2, 9]))])
    assert make_targets(batch, 1).classes[0].tolist() == [1, 1, 1]


def test_metrics_need_instances():
    task = SegmentTask(detector()).eval()
    batch = collate([discs().replace(masks=None, boxes=None)])
    with pytest.raises(DataError, match="case: no instances"):
        task.metrics(task.predict(batch), batch)


def test_images_of_another_rank_are_refused():
    with pytest.raises(SettingError, match="the model is for rank 3, the images have rank 2"):
        SegmentTask(detector(3)).predict(collate([discs()]))


@pytest.mark.parametrize(
    "settings",
    [
        {"class_names": ["a", "b"]},
        {"mask_threshold": 1.5},
        {"min_voxels": -1},
        {"min_volume": float("nan")},
        {"tile_overlap": 1.0},
        {"tile_size": [8, 8, 8]},
        {"input_range": [1.0, 0.0]},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        SegmentTask(detector(), **settings)


def test_settings_make_the_same_task_again():
    task = SegmentTask(detector(), class_names=("cell",), tile_size=(32, 48), loss_weights={"mask": 2.0})
    plain = json.loads(json.dumps({"task": task.settings(), "network": task.network.settings()}))
    again = SegmentTask(MaskRCNN(**plain["network"]), **plain["task"])
    again.load_state_dict(task.state_dict())
    assert again.settings() == task.settings()
    batch = collate([discs()])
    for one, other in zip(task.eval().predict(batch), again.eval().predict(batch), strict=True):
        np.testing.assert_array_equal(one.candidates.boxes, other.candidates.boxes)


def test_an_image_larger_than_a_tile_is_predicted_by_tiles(monkeypatch):
    task = SegmentTask(detector(), tile_size=32, tile_overlap=0.5).eval()
    seen = []
    original = Detector.__call__

    def spied(self, image):
        seen.append(tuple(image.shape))
        return original(self, image)

    monkeypatch.setattr(Detector, "__call__", spied)
    (prediction,) = task.predict(collate([discs()]))
    assert seen == [(1, 32, 32)] * 9
    assert prediction.label_volume.shape == (64, 64)


def found(*boxes: tuple[float, ...], scores: tuple[float, ...]) -> Detections:
    count = len(boxes)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.ones(count, dtype=torch.int64), None)


def test_doubles_and_slivers_are_left_out_by_falling_score():
    one, shifted, other = (1.5, 1.5, 9.5, 9.5), (2.5, 1.5, 10.5, 9.5), (12.5, 2.5, 15.5, 5.5)
    detections = found(shifted, other, one, scores=(0.6, 0.7, 0.9))
    kept = decode(detections, (20, 20))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(decode(detections, (20, 20), min_visible=0.0)) == 3
    assert len(decode(detections, (20, 20), min_voxels=10)) == 1
    assert len(decode(detections, (20, 20), score_threshold=0.8)) == 1


def test_min_volume_is_physical():
    task = SegmentTask(detector(), min_volume=10.0)
    task.network.detect = lambda image: [found((1.5, 1.5, 5.5, 5.5), scores=(0.9,))]  # 16 voxels
    image = torch.zeros(1, 20, 20)
    assert len(task.detector(Space.from_spacing((20, 20), (1.0, 1.0)))(image)) == 1
    assert len(task.detector(Space.from_spacing((20, 20), (0.5, 1.0)))(image)) == 0


def test_the_threshold_that_is_best_on_validation_cases_is_remembered():
    sample = discs()
    task = SegmentTask(detector())
    truth = [(11.5, 9.5, 24.5, 22.5), (11.5, 23.5, 24.5, 36.5), (39.5, 33.5, 52.5, 46.5)]
    wrong = [(2.5, 50.5, 9.5, 60.5), (50.5, 2.5, 60.5, 12.5)]
    task.network.detect = lambda image: [found(*truth, *wrong, scores=(0.9, 0.8, 0.75, 0.6, 0.55))]
    batch = collate([sample])
    before = task.predict(batch)
    assert len(before[0]) == 5
    task.calibrate(before, [sample])
    assert 0.6 < task.operating_threshold <= 0.75
    assert len(task.predict(batch)[0]) == 3
    fixed = SegmentTask(detector(), score_threshold=0.2)
    fixed.calibrate(before, [sample])
    assert fixed.operating_threshold == 0.2


def test_the_baseline_is_tuned_on_training_cases_and_shown_beside():
    task, batch = SegmentTask(detector()).eval(), collate([discs()])
    task.fit_baseline([discs()])
    summary = task.summary(task.metrics(task.predict(batch), batch))
    assert summary["watershed_ap_50"] == 1.0


def test_the_baseline_is_tuned_on_the_middle_of_a_large_image(monkeypatch):
    seen = []
    monkeypatch.setattr("voxelry.tasks.segment.task._TUNED_VOXELS", 32 * 32)
    monkeypatch.setattr(Watershed, "tuned", lambda cases: seen.extend(cases) or Watershed(0.5, 4.0))
    sample = discs(spacing=(0.5, 0.25))
    SegmentTask(detector()).fit_baseline([sample] * 6)
    assert len(seen) == 4
    for image, spacing, truth in seen:
        assert spacing == (0.5, 0.25)
        np.testing.assert_array_equal(image, sample.image[0, 16:48, 16:48])
        np.testing.assert_array_equal(truth, sample.masks[16:48, 16:48])


def test_the_watershed_parts_what_touches_in_physical_distances():
    sample = make_nuclei(1, shape=(24, 64, 64), density=0.1, noise=0.005)
    fine = Watershed(1.0, 6.0)(sample.image[0].numpy(), sample.space.spacing)
    assert fine.shape == (24, 64, 64)
    assert 1 <= fine.max() <= 3 * len(sample.boxes)
    assert Watershed(1.0, 4.0)(np.zeros((8, 8)), (1.0, 1.0)).max() == 0
    flat = discs().image[0].numpy()
    whole = Watershed(0.5, 4.0)(flat, (1.0, 1.0))
    assert whole.max() == 3
    thin = Watershed(0.5, 4.0)(flat[::2], (2.0, 1.0))
    assert thin.max() == 3


def test_anchors_have_the_shape_of_the_objects():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.uniform(0.9, 1.1, (50, 3)) * size for size in ((4, 9, 9), (8, 20, 24))])
    boxes = torch.from_numpy(np.concatenate([np.zeros_like(lengths), lengths], axis=1))
    small, large = anchors_for(boxes, levels=2)
    assert np.abs(np.array(small[0]) / (4, 9, 9) - 1).max() < 0.1
    assert np.abs(np.array(large[0]) / (8, 20, 24) - 1).max() < 0.1
    assert np.shape(anchors_for(boxes, levels=3, per_level=2)) == (3, 2, 3)
    with pytest.raises(SettingError, match="at least one object"):
        anchors_for(torch.full((2, 6), torch.nan), levels=2)


def test_classes_are_measured_apart_on_what_is_written(tmp_path):
    torch.manual_seed(0)
    task = SegmentTask(detector(classes=3), class_names=["round", "square"], score_threshold=0.1)
    sample = discs().replace(classes=torch.tensor([1, 2, 2]))
    truth = sample.masks.numpy()
    shifted = np.roll(truth, 2, axis=0)
    crops = [*from_labels(truth).crops, *from_labels(shifted).crops]
    boxes = np.concatenate([from_labels(truth).boxes, from_labels(shifted).boxes])
    candidates = Instances(boxes, [0.9, 0.3, 0.8, 0.7, 0.6, 0.05], [1, 2, 1, 1, 2, 2], crops)
    prediction = task.prediction("case", sample.space, candidates)
    (row,) = task.metrics([prediction], collate([sample]))
    summary = task.summary([row])
    volume = read_image(write_instances(prediction, tmp_path, format=".tif")[0]).array[0].astype(int)
    ids = np.unique(volume[volume > 0])
    written = from_labels(volume, classes=prediction.classes[ids - 1])
    expected = instance_row(written, truth, truth_classes=[1, 2, 2])
    for name in ("ap_50", "ap_75", "pq", "seg", "det", "precision_50", "mean_iou_50", "predicted"):
        assert row[name] == expected[name], name
    assert summary["ap_50"] == pytest.approx((summary["ap_50.round"] + summary["ap_50.square"]) / 2)
    assert summary["ap_50"] < summary["ap_50_class_blind"]
    assert task.monitor == "ap_50"


def test_a_class_without_a_name_cannot_be_measured():
    task = SegmentTask(detector(classes=3), class_names=["round", "square"])
    batch = collate([discs().replace(classes=torch.tensor([1, 2, 3]))])
    prediction = task.prediction("case", batch.spaces[0], Instances.empty(2))
    with pytest.raises(DataError, match="case: an instance of class 3; expected 1 to 2"):
        task.metrics([prediction], batch)

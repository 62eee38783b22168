import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.metrics.detection import COCO_THRESHOLDS, Detections, average_precision, froc, froc_curve
from voxelry.metrics.instances import (
    THRESHOLDS,
    InstanceRecord,
    accuracy_by_score,
    instance_metrics,
    instance_row,
    records_of,
    summarise,
)
from voxelry.metrics.matching import matched
from voxelry.metrics.overlap import Overlaps, box_overlaps, label_boxes, mask_overlaps
from voxelry.ops.instances import Instances, LabelVolume, PackedCrops, from_labels


def blobs(rng, shape, count, grow=0):
    """Random overlapping cuboids painted one over the other; ids are not contiguous."""
    labels = np.zeros(shape, dtype=np.int32)
    for number in range(count):
        low = [int(rng.integers(0, size - 3)) for size in shape]
        place = tuple(slice(a, a + int(rng.integers(2, 5)) + grow) for a in low)
        labels[place] = 3 * number + 2
    return labels


def dense_iou(first, second):
    return np.array(
        [
            [
                np.sum((first == a) & (second == b)) / np.sum((first == a) | (second == b))
                for b in np.unique(second[second > 0])
            ]
            for a in np.unique(first[first > 0])
        ]
    )


@pytest.mark.parametrize("shape", [(20, 24), (8, 12, 14)])
@pytest.mark.parametrize("slab", [1, 1 << 24])
def test_the_four_ways_to_count_overlaps_agree(rng, shape, slab, monkeypatch):
    monkeypatch.setattr("voxelry.metrics.overlap._SLAB", slab)
    first, second = blobs(rng, shape, 9), blobs(rng, shape, 7)
    wanted = dense_iou(first, second)
    for one in (first, from_labels(first)):
        for other in (second, from_labels(second)):
            table = mask_overlaps(one, other)
            iou = np.zeros(wanted.shape)
            iou[table.predicted, table.truth] = table.iou
            np.testing.assert_allclose(iou, wanted, rtol=1e-12)
            np.testing.assert_array_equal(table.truth_sizes, np.unique(second, return_counts=True)[1][1:])
    ids, boxes = label_boxes(second)
    np.testing.assert_array_equal(ids, np.unique(second)[1:])
    np.testing.assert_array_equal(boxes, from_labels(second).boxes)


def test_ids_beyond_32_bits_are_ids():
    truth = np.zeros((4, 4), dtype=np.uint64)
    truth[0], truth[2] = (1 << 40) + 5, 5
    prediction = truth.copy()
    assert instance_metrics(prediction, truth)["ap_95"] == 1.0


@pytest.mark.parametrize("ndim", [2, 3])
def test_matching_equals_the_hungarian_method_on_the_whole_matrix(rng, ndim):
    from scipy.optimize import linear_sum_assignment

    shape = (10,) * ndim
    for _ in range(20):
        truth = from_labels(blobs(rng, shape, 6, grow=2))
        drawn = from_labels(blobs(rng, shape, 12, grow=2))
        table = mask_overlaps(drawn, truth)
        iou = np.zeros((len(drawn), len(truth)))
        iou[table.predicted, table.truth] = table.iou
        for threshold in (0.05, 0.3, 0.5):
            gain = np.where(iou >= threshold, 1 + iou / (2 * min(iou.shape)), 0)
            rows, columns = linear_sum_assignment(gain, maximize=True)
            wanted = [iou[r, c] for r, c in zip(rows, columns, strict=True) if iou[r, c] >= threshold]
            pairs = matched(table, threshold)
            assert len(pairs) == len(wanted)
            assert table.iou[pairs].sum() == pytest.approx(sum(wanted))
            assert len(set(table.predicted[pairs])) == len(set(table.truth[pairs])) == len(pairs)


def worked_case():
    """Four true squares of 16 voxels: one exact, one three quarters, one missed, one split in the middle; one false."""
    truth, drawn = np.zeros((16, 16), dtype=int), np.zeros((16, 16), dtype=int)
    truth[0:4, 0:4], truth[0:4, 8:12], truth[8:12, 0:4], truth[8:12, 8:12] = 1, 2, 3, 4
    drawn[0:4, 0:4], drawn[0:4, 8:11], drawn[8:12, 8:10], drawn[8:12, 10:12], drawn[14:16, 14:16] = 1, 2, 3, 4, 5
    return drawn, truth


def test_every_number_of_a_worked_case():
    found = instance_metrics(*worked_case())
    # IoU 1 and 0.75; the halves have an IoU of 0.5, and one of them is a match at 0.5
    assert found["ap_50"] == pytest.approx(3 / (3 + 2 + 1))
    assert found["ap_55"] == found["ap_75"] == pytest.approx(2 / (2 + 3 + 2))
    assert found["ap_80"] == found["ap_95"] == pytest.approx(1 / (1 + 4 + 3))
    assert found["ap_mean"] == pytest.approx((1 / 2 + 5 * 2 / 7 + 4 / 8) / 10)
    assert found["precision_50"] == pytest.approx(3 / 5)
    assert found["recall_50"] == pytest.approx(3 / 4)
    assert found["f1_50"] == pytest.approx(6 / 9)
    assert found["mean_iou_50"] == pytest.approx(2.25 / 3)
    # half is not more than half: the split object counts as missed, in PQ, in SEG and in DET
    assert found["rq"] == pytest.approx(4 / 9)
    assert found["sq"] == pytest.approx(1.75 / 2)
    assert found["pq"] == pytest.approx(1.75 / 4.5)
    assert found["seg"] == pytest.approx((1 + 0.75) / 4)
    assert found["det"] == pytest.approx(1 - (2 * 10 + 3 * 1) / 40)
    assert found["count_error"] == 1
    assert (found["predicted"], found["truth"]) == (5, 4)
    assert all(np.isfinite(value) for value in found.values())


def test_a_prediction_over_two_cells_has_to_be_split():
    truth = np.zeros((4, 12), dtype=int)
    truth[:, :4], truth[:, 4:8] = 1, 2
    drawn = (truth > 0).astype(int)
    found = instance_metrics(drawn, truth)
    assert found["det"] == pytest.approx(1 - 5 / 20)
    assert found["seg"] == pytest.approx(0.5)
    assert found["ap_50"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_empty_truth_and_empty_predictions(ndim):
    nothing = np.zeros((6,) * ndim, dtype=int)
    something = nothing.copy()
    something[(slice(1, 3),) * ndim] = 1
    errors = ("count_error", "predicted", "truth", "images")
    for empty in (nothing, Instances.empty(ndim)):
        both = instance_metrics(empty, nothing)
        assert {value for key, value in both.items() if key not in errors} == {1.0}
        assert both["count_error"] == 0
        for found in (instance_metrics(something, nothing), instance_metrics(empty, something)):
            assert {value for key, value in found.items() if key not in errors} == {0.0}
            assert found["count_error"] == 1
    assert summarise([])["ap_50"] == 1.0


def test_a_data_set_pools_objects_and_can_average_images():
    drawn, truth = worked_case()
    rows = [instance_row(drawn, truth), instance_row(truth, truth)]
    found = summarise(rows)
    assert found["ap_50"] == pytest.approx(7 / (7 + 2 + 1))
    assert found["ap_50_by_image"] == pytest.approx((0.5 + 1) / 2)
    assert found["seg"] == pytest.approx((1.75 + 4) / 8)
    assert found["det"] == pytest.approx(1 - 23 / 80)
    assert found["images"] == 2
    assert found == instance_metrics([drawn, truth], [truth, truth])
    with pytest.raises(SettingError, match="expected 2, one per truth, got 1"):
        instance_metrics([drawn], [truth, truth])


def test_a_record_survives_its_text(rng):
    drawn, truth = from_labels(blobs(rng, (9, 9, 9), 8)), blobs(rng, (9, 9, 9), 8)
    row = instance_row(drawn, truth)
    assert summarise([row]) == summarise([dict(row)])
    (record,) = records_of([row])
    again = InstanceRecord.from_text(record.to_text())
    assert again.to_text() == record.to_text()
    assert again.classes[1].plain() == record.blind.plain()
    np.testing.assert_array_equal(again.detections.hits["mask"], record.detections.hits["mask"])


def ranked(*images):
    """Images of `(score, hit)` pairs and a number of true objects, one class, same hits at every threshold."""
    records = []
    for pairs, total in images:
        scores = np.array([score for score, _ in pairs])
        hits = np.repeat(np.array([hit for _, hit in pairs], dtype=bool).reshape(-1, 1), 11, axis=1)
        records.append(Detections(scores, np.ones(len(pairs), dtype=int), {"mask": hits, "box": hits}, {1: total}))
    return records


def test_coco_average_precision_of_a_worked_case():
    records = ranked(([(0.9, True), (0.8, False), (0.7, True)], 2), ([(0.6, False), (0.5, True)], 2))
    # precision 1, 1/2, 2/3, 1/2, 3/5 at recall 1/4, 1/4, 1/2, 1/2, 3/4: monotone 1, 2/3, 2/3, 3/5, 3/5
    wanted = (26 * 1 + 25 * 2 / 3 + 25 * 3 / 5) / 101
    assert average_precision(records, thresholds=(0.5,)) == pytest.approx(wanted)
    assert average_precision(records) == pytest.approx(wanted)
    with pytest.raises(SettingError, match="threshold: expected one of"):
        average_precision(records, thresholds=(0.42,))


def test_coco_takes_classes_apart_and_the_best_detections_only():
    truth = np.zeros((4, 12), dtype=int)
    truth[:, :4], truth[:, 4:8], truth[:, 8:] = 1, 2, 3
    drawn = from_labels(truth, classes=[1, 1, 2], scores=[0.9, 0.8, 0.7])
    assert instance_metrics(drawn, truth, truth_classes=[1, 1, 2])["coco_map_mask"] == 1.0
    swapped = instance_metrics(drawn, truth, truth_classes=[1, 2, 2])
    # class 1: one object, first detection right: 1; class 2: two objects, one found: 51 of 101 recalls
    assert swapped["coco_map_mask"] == swapped["coco_map_box"] == pytest.approx((1 + 51 / 101) / 2)
    one = instance_metrics(drawn, truth, truth_classes=[1, 1, 1], max_detections=1)
    assert one["coco_map_mask"] == pytest.approx(34 / 101)
    with pytest.raises(SettingError, match="truth_classes: expected one per id up to 3, got 2"):
        instance_metrics(drawn, truth, truth_classes=[1, 1])


def test_box_and_mask_precision_differ_where_boxes_flatter():
    truth = np.zeros((8, 8), dtype=int)
    truth[np.arange(8), np.arange(8)] = 1
    filled = from_labels(np.ones((8, 8), dtype=int))
    found = instance_metrics(filled, truth)
    assert found["coco_map_box"] == 1.0
    assert found["coco_map_mask"] == 0.0


def test_scores_below_the_threshold_only_count_where_detections_are_ranked():
    drawn, truth = worked_case()
    scored = from_labels(drawn, scores=[0.9, 0.8, 0.2, 0.1, 0.05])
    found = instance_metrics(scored, truth)
    assert found["ap_50"] == pytest.approx(2 / 4)
    assert found["precision_50"] == 1.0
    # the false one has the lowest score and costs no precision before it
    assert found["coco_map_mask"] == pytest.approx(np.mean([76 / 101] + [51 / 101] * 5 + [26 / 101] * 4), abs=1e-9)


@pytest.mark.parametrize("shape", [(20, 24), (8, 12, 14)])
def test_accuracy_at_many_scores_is_that_of_each_alone(rng, shape):
    truths = [blobs(rng, shape, 6), np.zeros(shape, dtype=np.int32)]
    found = []
    for truth in truths:
        guess = from_labels(np.roll(blobs(rng, shape, 5) + truth * (truth > 2), 1, axis=0))
        found.append(Instances(guess.boxes, rng.random(len(guess)), guess.classes, guess.crops))
    levels = (0.0, 0.3, 0.6, 1.0)
    together = accuracy_by_score(found, truths, levels)
    for level, values in zip(levels, together, strict=True):
        alone = instance_metrics(found, truths, score_threshold=level)
        assert values.tolist() == [alone["ap_50"], alone["ap_75"]]
    assert (accuracy_by_score(found[1:], truths[1:], (2.0,)) == 1).all()


def test_froc_is_the_sensitivity_within_a_budget_of_false_positives():
    records = ranked(
        ([(0.9, True), (0.8, False), (0.7, True), (0.2, False)], 3),
        ([(0.6, False), (0.5, True), (0.3, False), (0.3, True)], 3),
    )
    false, sensitivity = froc_curve(records)
    np.testing.assert_allclose(false, [0, 0, 0.5, 0.5, 1, 1, 1.5, 2])
    np.testing.assert_allclose(sensitivity, np.array([0, 1, 1, 2, 2, 3, 4, 4]) / 6)
    np.testing.assert_allclose(froc(records), np.array([1, 1, 2, 3, 4, 4, 4]) / 6)


def test_overlapping_masks_are_ranked_as_they_are_and_counted_as_a_label_volume_shows_them():
    crops = [
        ((slice(0, 4), slice(0, 6)), np.ones((4, 6), dtype=bool)),
        ((slice(0, 4), slice(4, 10)), np.ones((4, 6), dtype=bool)),
    ]
    boxes = [[-0.5, -0.5, 3.5, 5.5], [-0.5, 3.5, 3.5, 9.5]]
    both = Instances(np.array(boxes, dtype=np.float32), [0.9, 0.8], [1, 1], crops)
    found = instance_metrics(both, both)
    assert found["coco_map_mask"] == 1.0
    assert found["pq"] == pytest.approx((1 + 16 / 24) / 2)  # of the second's 24 voxels the first has 8
    packed = Instances(both.boxes, both.scores, both.classes, PackedCrops.pack(crops, 2))
    assert instance_row(packed, both) == instance_row(both, both)


@pytest.mark.parametrize("shape", [(20, 24), (8, 12, 14)])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_scores_are_those_of_the_label_volume_that_is_written(rng, shape, threshold):
    truth = blobs(rng, shape, 6, grow=2)
    crops = [crop for _ in range(3) for crop in from_labels(blobs(rng, shape, 6, grow=2)).crops]
    boxes = [[part.start for part in window] + [part.stop for part in window] for window, _ in crops]
    found = Instances(np.array(boxes), rng.random(len(crops)).round(1), rng.integers(1, 3, len(crops)), crops)
    classes = rng.integers(1, 3, truth.max())
    sure = found.take(np.flatnonzero(found.scores >= threshold))
    volume = np.asarray(LabelVolume(sure, shape))
    ids = np.unique(volume[volume > 0])
    written = from_labels(volume, classes=sure.classes[ids - 1])
    settings = {"truth_classes": classes, "ranked": False}
    expected = summarise([instance_row(written, truth, **settings)], class_names={1: "a", 2: "b"})
    row = instance_row(found, truth, score_threshold=threshold, **settings)
    assert summarise([row], class_names={1: "a", 2: "b"}) == expected
    assert expected["predicted"] == len(ids)


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_object_of_another_class_is_no_hit(ndim):
    truth = np.zeros((6,) * (ndim - 1) + (16,), dtype=int)
    for number in range(4):
        truth[..., 4 * number : 4 * number + 3] = number + 1
    classes = [1, 1, 1, 2]
    swapped = from_labels(truth, classes=[1, 1, 2, 2])
    names = {1: "cell", 2: "debris"}
    found = summarise([instance_row(swapped, truth, truth_classes=classes)], class_names=names)
    # cells: two found, one missed; debris: one found, one false
    assert (found["ap_50.cell"], found["ap_50.debris"]) == pytest.approx((2 / 3, 1 / 2))
    assert found["ap_50"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["pq"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["ap_50_class_blind"] == found["pq_class_blind"] == 1.0
    assert (found["count_error"], found["count_error_class_blind"]) == (2, 0)
    assert (found["truth.cell"], found["predicted.cell"], found["predicted.debris"]) == (3, 2, 2)
    exact = from_labels(truth, classes=classes)
    assert summarise([instance_row(exact, truth, truth_classes=classes)], class_names=names)["pq"] == 1.0
    alone = summarise([instance_row(swapped, truth, truth_classes=classes)], class_names={1: "object"})
    assert not [name for name in alone if "blind" in name or name.endswith((".cell", ".debris", ".object"))]


def test_accuracy_by_score_is_by_class_and_of_the_label_volume():
    truth = np.zeros((4, 8), dtype=int)
    truth[:, :4], truth[:, 4:] = 1, 2
    crops = [((slice(0, 4), slice(0, 8)), np.ones((4, 8), dtype=bool)), *from_labels(truth).crops]
    boxes = np.zeros((3, 4))
    found = Instances(boxes, [0.4, 0.9, 0.8], [1, 1, 2], crops)
    (values,) = accuracy_by_score([found], [truth], (0.1,), truth_classes=[[1, 2]])
    assert values.tolist() == [1.0, 1.0]  # nothing is left of the first, so that it isn't there
    (values,) = accuracy_by_score([found], [truth], (0.1,), truth_classes=[[1, 1]])
    assert values.tolist() == [0.25, 0.25]  # class 1: one of two; class 2: a false one


def test_other_thresholds_can_be_asked_for():
    drawn, truth = worked_case()
    row = instance_row(drawn, truth, thresholds=(0.3, 0.55), ranked=False)
    assert row["ap_30"] == pytest.approx(3 / 6)
    assert row["ap_55"] == pytest.approx(2 / 7)
    assert "ap_60" not in row
    assert not [name for name in row if name.startswith("coco")]
    assert summarise([row])["ap_30"] == pytest.approx(3 / 6)


def test_boxes_that_touch_share_nothing():
    table = box_overlaps(np.array([[0, 0, 2, 2.0]]), np.array([[2, 0, 4, 2.0], [1, 1, 3, 3.0], [0, 0, 2, 2.0]]))
    assert table.truth.tolist() == [1, 2]
    np.testing.assert_allclose(table.iou, [1 / 7, 1])


def test_bad_input_is_named():
    labels = np.zeros((4, 4), dtype=int)
    with pytest.raises(SettingError, match="prediction: expected shape"):
        instance_metrics(np.zeros((4, 5), dtype=int), labels)
    with pytest.raises(SettingError, match="expected integer instance ids"):
        instance_metrics(labels.astype(float), labels)
    with pytest.raises(SettingError, match="expected ids from 0, got -1"):
        instance_metrics(labels - 1, labels)
    with pytest.raises(SettingError, match="leaves the truth of shape"):
        instance_metrics(from_labels(np.ones((6, 6), dtype=int)), labels)


def test_panoptica_counts_the_same(rng):
    panoptica = pytest.importorskip("panoptica", reason="panoptica is not installed")
    # 3-D, disjoint, unconnected ids allowed; panoptica matches at an IoU of 0.5
    for _ in range(3):
        truth = blobs(rng, (12, 14, 16), 9, grow=2)
        drawn = np.where(rng.random(truth.shape) < 0.85, truth, 0)
        drawn[drawn == truth.max()] = 0
        drawn[:2, :2, :2] = 99
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
            instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
            instance_metrics=[panoptica.Metric.IOU],
            global_metrics=[],
        )
        result = evaluator.evaluate(drawn.astype(np.uint16), truth.astype(np.uint16), verbose=False)["ungrouped"]
        found = instance_metrics(drawn, truth)
        assert found["pq"] == pytest.approx(result.pq)
        assert found["sq"] == pytest.approx(result.sq)
        assert found["rq"] == pytest.approx(result.rq)
        assert found["ap_50"] == pytest.approx(result.tp / (result.tp + result.fp + result.fn))


def test_thresholds_are_those_of_coco():
    assert THRESHOLDS == COCO_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert Overlaps(*(np.zeros(0, dtype=int),) * 3, np.ones(2), np.ones(3)).iou.shape == (0,)

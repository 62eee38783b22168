"""Which metrics are computed, told and counted, for every task."""

import math

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.metrics.choice import MetricChoice, Wanted
from voxelry.metrics.instances import instance_row, metric_names, summarise
from voxelry.metrics.landmarks import case_row
from voxelry.metrics.surfaces import METRICS, SURFACE_METRICS, reconstruction_metrics
from voxelry.metrics.translation import figure_names, translate_metrics
from voxelry.tasks.base import Task


class Sorter(Task):
    """A task that knows a few metrics and classes."""

    monitor = "ap_50"
    slow = ("coco_*",)
    highest_threshold = 1.0

    def settings(self):
        return {}

    def training_loss(self, batch):
        return {"loss": torch.zeros(())}

    def predict(self, batch):
        return []

    def metrics(self, predictions, batch, wanted=Wanted()):  # noqa: B008 it is frozen
        return []

    def summary(self, rows):
        return {"ap_50": 1.0, "ap_75": 0.5, "coco_map_box": 0.25, "pq": 0.75}

    def measured_classes(self):
        return ("round", "square")


def chosen(**choice) -> Sorter:
    task = Sorter()
    task.choose(MetricChoice.from_settings(choice))
    return task


def test_a_validation_leaves_out_what_takes_long_and_keeps_what_decides():
    summary = Sorter().summary(())
    assert list(Sorter().while_learning().of(summary)) == ["ap_50", "ap_75", "pq"]
    assert list(chosen(at_validation=["coco_*"]).while_learning().of(summary)) == ["ap_50", "coco_map_box"]
    assert list(chosen(at_validation=["*"]).while_learning().of(summary)) == list(summary)


def test_the_end_tells_everything_or_what_is_asked_for_of_unseen_cases_too():
    summary = {"ap_50": 1.0, "pq": 0.5, "unseen.pq": 0.25, "unseen.ap_50": 0.0}
    assert chosen().chosen.when_done().of(summary) == summary
    assert chosen(at_end=["pq"]).chosen.when_done().of(summary) == {"pq": 0.5, "unseen.pq": 0.25}


@pytest.mark.parametrize(
    ("choice", "fault"),
    [
        ({"at_end": ["ap50"]}, "metrics.at_end: no 'ap50' here; the nearest is 'ap_50'"),
        ({"at_validation": ["froc_*"]}, "metrics.at_validation: no 'froc_\\*' here; expected some of ap_50, ap_75"),
        ({"at_end": "pq"}, "metrics.at_end: expected names such as \\[pq\\], got 'pq'"),
        ({"at_end": []}, "metrics.at_end: expected names"),
        ({"classes": ["sqare"]}, "metrics.classes: no 'sqare' here; the nearest is 'square'"),
        ({"thresholds": [1.5]}, "metrics.thresholds: expected numbers up to 1, got 1.5"),
        ({"thresholds": 0.3}, "metrics.thresholds: expected a list of positive numbers, got 0.3"),
        ({"thresholds": [True]}, "metrics.thresholds: expected a list of positive numbers"),
        ({"thresholds": [math.nan]}, "metrics.thresholds: expected a list of positive numbers"),
        ({"clases": ["round"]}, "metrics.clases: no such setting; the nearest is 'classes'"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(choice, fault):
    with pytest.raises(SettingError, match=fault):
        chosen(**choice)


def test_a_task_without_classes_and_thresholds_takes_none():
    class Plain(Sorter):
        highest_threshold = None

        def measured_classes(self):
            return ()

    with pytest.raises(SettingError, match=r"metrics.thresholds: nothing here is found or missed"):
        Plain().choose(MetricChoice(thresholds=[0.3]))
    with pytest.raises(SettingError, match=r"metrics.classes: no 'round' here; this task has none"):
        Plain().choose(MetricChoice(classes=["round"]))


def two_classes():
    truth = np.zeros((8, 24), dtype=int)
    truth[2:6, 2:6], truth[2:6, 10:14] = 1, 2
    found = np.zeros_like(truth)
    found[2:6, 2:6], found[4:8, 10:14] = 1, 2
    return found, truth


def test_names_of_instances_are_those_that_a_summary_gives():
    found, truth = two_classes()
    row = instance_row(found, truth, truth_classes=[1, 2], thresholds=(0.3,))
    summary = summarise([row], class_names={1: "round", 2: "square"})
    assert set(summary) == set(metric_names(["round", "square"], [0.3]))
    assert set(summarise([row])) == set(metric_names(["object"], [0.3]))


def test_objects_of_classes_that_do_not_count_are_left_out_on_both_sides():
    found, truth = two_classes()
    every = instance_row(found, truth, truth_classes=[1, 1], thresholds=(0.3,))
    assert (every["ap_50"], every["ap_30"]) == (1 / 3, 1.0)
    first = instance_row(found, truth, truth_classes=[1, 2], counted=[1])
    assert (first["truth"], first["predicted"]) == (1, 2)
    assert (first["ap_50"], first["coco_map_mask"]) == (0.5, 1.0)
    none = instance_row(found, truth, truth_classes=[1, 2], counted=[3])
    assert (none["truth"], none["predicted"], none["ap_50"]) == (0, 0, 1.0)


def test_numbers_of_a_case_are_of_the_landmarks_that_count():
    truth = np.array([[0.0, 0, 0], [0, 0, 0]])
    predicted = np.array([[1.0, 0, 0], [0, 3, 0]])
    assert case_row("case", ["a", "b"], predicted, truth)["mre_mm"] == 2
    row = case_row("case", ["a", "b"], predicted, truth, counted=["b"])
    assert (row["mre_mm"], row["worst_mm"], row["error_mm.a"]) == (3, 3, 1)


def test_names_of_shapes_and_translations_are_those_that_are_measured():
    ball = np.zeros((12, 12, 12), dtype=bool)
    ball[3:9, 3:9, 3:9] = True
    space = Space.from_spacing(ball.shape)
    measured = reconstruction_metrics(ball, ball, space)
    slices = {name for name in METRICS if name.startswith(("on_slice", "dice_"))}
    assert set(measured) == set(METRICS) - slices
    assert set(measured) - set(reconstruction_metrics(ball, ball, space, surfaces=False)) == set(SURFACE_METRICS)
    for shape in ((8, 9), (8, 9, 10)):
        image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
        figures = translate_metrics(image, image, space=Space.from_spacing(shape))
        assert list(figures) == figure_names(len(shape))


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ([1, 2], r"classes=\[liver,spleen\]"),
        (["2"], r"classes=\[spleen\]"),
        ([3], "expected some of"),
        (["livr"], "'liver'"),
    ],
)
def test_classes_asked_for_by_number_are_told_their_names(asked, advice):
    with pytest.raises(SettingError, match=f"^metrics.classes: no .* here; .*{advice}"):
        MetricChoice(classes=asked).check(["ap_50"], ["liver", "spleen"], None)

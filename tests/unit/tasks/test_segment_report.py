import re

import numpy as np
import pytest
import torch

from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.metrics.instances import instance_row, summarise
from voxelry.ops.instances import from_labels
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.segment.predict import InstancePrediction
from voxelry.tasks.segment.report import add_results, match_ids
from voxelry.viz.report import Report


class Scores:
    """As much of a task as the report needs."""

    def summary(self, rows):
        return summarise(rows)


def cases(shape, spacing):
    """Three cases of four objects each: all found, one missed, and an image without any."""
    space = Space.from_spacing(shape, spacing)
    truth = np.zeros(shape, dtype=np.int64)
    for number, start in enumerate((0, 4, 8, 12), start=1):
        truth[(slice(1, 3 + number),) * (len(shape) - 1) + (slice(start, start + 3),)] = number
    labels = {
        "perfect": (truth, truth),
        "poor": (np.where(truth == 3, 0, truth), truth),
        "blank": (truth * 0, truth * 0),
    }
    predictions, samples, rows = [], [], []
    for name, (found, wanted) in labels.items():
        instances = from_labels(found)
        predictions.append(InstancePrediction.from_instances(name, space, instances))
        samples.append(Sample(torch.zeros(1, *shape), space, name, masks=torch.from_numpy(wanted)))
        rows.append(instance_row(instances, wanted, name=name))
    return predictions, samples, rows


@pytest.mark.parametrize(("shape", "spacing", "unit"), [((8, 9, 16), 2.0, "mm³"), ((9, 16), 0.001, "µm²")])
def test_the_report_begins_with_the_worst_case(shape, spacing, unit):
    predictions, samples, rows = cases(shape, spacing)
    page = add_results(Report("Segmentation"), Scores(), Evaluation(rows, {}, predictions, samples)).html()
    headings = ("Instances", "Errors by size", "Cases")
    assert all(heading in page for heading in headings)
    assert f"size ({unit})" in page
    assert "Worst case, poor: AP 0.75 at IoU 0.5" in page
    listing = page[page.index("Every held-out case") :]
    assert listing.index("poor") < listing.index("perfect")
    assert "watershed" not in page


def test_the_baseline_stands_beside():
    predictions, samples, rows = cases((8, 9, 16), 1.0)
    rows = [row | {"watershed_record": rows[1]["record"]} for row in rows]
    page = add_results(Report("Segmentation"), Scores(), Evaluation(rows, {}, predictions, samples)).html()
    assert "watershed" in page


def test_a_report_of_one_blank_image_is_a_report():
    predictions, samples, rows = (part[2:] for part in cases((9, 16), 1.0))
    page = add_results(Report("Segmentation"), Scores(), Evaluation(rows, {}, predictions, samples)).html()
    assert "Worst case, blank" in page
    assert "Errors by size" not in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page), re.IGNORECASE)


def test_ids_are_matched_by_overlap():
    truth, found = np.zeros((6, 12), dtype=int), np.zeros((6, 12), dtype=int)
    truth[:, :4], truth[:, 5:9] = 4, 9
    found[:, :3], found[:, 10:], found[:, 6:9] = 30, 20, 10
    assert match_ids(found, truth) == {30: 4, 10: 9}
    kinds = np.zeros(30, dtype=int)
    kinds[29], kinds[9] = 1, 2
    assert match_ids(found, truth, classes=(kinds, np.array([0, 0, 0, 1, 0, 0, 0, 0, 1]))) == {30: 4}


def test_several_classes_have_a_row_each():
    predictions, samples, rows = cases((9, 16), 1.0)
    rows = []
    for place, (prediction, sample) in enumerate(zip(predictions, samples, strict=True)):
        classes = torch.tensor([1, 1, 2, 2])
        samples[place] = sample.replace(classes=classes)
        ids = np.unique(prediction.label_volume[prediction.label_volume > 0])
        kinds = np.array([1, 1, 2, 2])[ids - 1]
        instances = from_labels(prediction.label_volume, classes=kinds)
        predictions[place] = InstancePrediction.from_instances(prediction.name, prediction.space, instances)
        rows.append(instance_row(instances, sample.masks.numpy(), truth_classes=classes, name=prediction.name))

    class Two(Scores):
        class_names = ("round", "square")

        def summary(self, rows):
            return summarise(rows, class_names={1: "round", 2: "square"})

    page = add_results(Report("Segmentation"), Two(), Evaluation(rows, {}, predictions, samples)).html()
    assert "Each class by itself" in page
    assert "round" in page
    assert "classes not told apart" in page

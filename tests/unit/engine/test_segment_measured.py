"""Scores of instances are those of the files: what is written against the label file, on its own voxels."""

import numpy as np
import pytest
import torch

from voxelry.backbones.resnet import ResNet
from voxelry.bundle.registry import recipe_of
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.patches import crop
from voxelry.data.preprocess import Preprocess
from voxelry.io import read_image, write_image
from voxelry.metrics.instances import instance_row
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.ops.instances import Instances, from_labels
from voxelry.tasks.evaluate import evaluate_task
from voxelry.tasks.segment import SegmentTask

IDS = {41: (slice(3, 9), slice(4, 12), slice(2, 12)), 7: (slice(3, 9), slice(12, 21), slice(3, 14)),
       300: (slice(10, 14), slice(5, 20), slice(20, 29))}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One oblique, mirrored, anisotropic volume of three objects, two of which touch."""
    root = tmp_path_factory.mktemp("measured")
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn[:, ::-1] @ np.diag([2.5, 0.8, 1.1]), (-30, 12, 50)
    space = Space((16, 24, 32), affine)
    labels = np.zeros(space.shape, dtype=np.uint16)
    for number, window in IDS.items():
        labels[window] = number
    for name, array in (("volumes", labels > 0), ("instances", labels)):
        (root / name).mkdir()
        write_image(root / name / "case.nii.gz", array[None].astype(np.uint16), space)
    return root


@pytest.fixture
def task():
    body = ResNet(ndim=3, layers=(1,), levels=("p2",), width=4, stem_kernel=3, stem_stride=2, pool_stride=None,
                  stage_strides=(1,), norm="group")  # fmt: skip
    torch.manual_seed(0)
    network = MaskRCNN(body, num_classes=2, anchors={"sizes": [[8.0]], "ratios": [1.0], "z_ratios": [1.0]},
                       box={"channels": 8, "output_size": 2}, mask={"convs": (4,), "output_size": 2})  # fmt: skip
    return SegmentTask(network, score_threshold=0.5)


@pytest.mark.parametrize(
    "settings", [{"spacing": 2.0}, {"image_size": [12, 20, 18], "align": "world"}, {"trim": True}], ids=str
)
def test_scores_are_those_of_the_written_volume_against_the_label_file(folder, task, tmp_path, monkeypatch, settings):
    dataset = VolumeDataset(find_cases(folder), preprocess=Preprocess(**settings), need=("masks",))
    seen = dataset[0]
    ids = seen.masks.numpy().copy()
    ids.ravel()[np.flatnonzero(ids == 3)[np.count_nonzero(ids == 3) // 4 :]] = 0  # a quarter of 300 doesn't find it
    found = from_labels(ids)
    unsure = Instances(found.boxes[:1], [0.1], [1], [found.crops[0]])
    candidates = Instances(
        np.concatenate([found.boxes, unsure.boxes]), [0.9, 0.8, 0.7, 0.1], [1] * 4, [*found.crops, *unsure.crops]
    )
    monkeypatch.setattr(task, "instances", lambda image, space: candidates)

    evaluation = evaluate_task(task, dataset)
    (prediction,), (row,) = evaluation.predictions, evaluation.rows

    file = folder / "instances" / "case.nii.gz"
    truth = read_image(file)
    whole = task.prediction("case", seen.space, candidates)
    kind = recipe_of(task)
    written = read_image(kind.write(whole, dataset.on_own_grid(0), tmp_path, "nii.gz"))
    assert written.space.is_close(truth.space)
    volume = written.array[0].astype(np.int64)
    np.testing.assert_array_equal(np.asarray(prediction.label_volume), volume)
    expected = instance_row(volume, truth.array[0].astype(np.int64))
    for name in ("ap_50", "ap_75", "pq", "seg", "det", "mean_iou_50", "predicted", "truth", "missed_ids", "extra_ids"):
        assert row[name] == expected[name], name
    assert (row["missed_ids"], row["extra_ids"]) == ("300", "3")
    own = instance_row(ids, seen.masks.numpy())  # on the grid that the network sees
    assert own["mean_iou_50"] == 1.0
    assert (row["mean_iou_50"] == 1.0) == (settings == {"trim": True})


def test_objects_that_vanish_on_the_network_s_grid_count_as_missed(folder, task, monkeypatch):
    dataset = VolumeDataset(find_cases(folder), preprocess=Preprocess(spacing=[40.0, 8.0, 8.0]), need=("masks",))
    assert len(dataset[0].masks.unique()) < 4
    assert dataset[0].ids == (7, 41, 300)
    monkeypatch.setattr(task, "instances", lambda image, space: Instances.empty(3))
    (row,) = evaluate_task(task, dataset).rows
    assert (row["truth"], row["missed_ids"]) == (3.0, "7 41 300")


def test_ids_of_objects_survive_cutting_and_need_not_be_small(folder):
    whole = VolumeDataset(find_cases(folder), preprocess=Preprocess(orientation=None), need=("masks",))[0]
    assert crop(whole, (2, 12, 0), (8, 10, 16)).ids == (7,)
    row = instance_row(np.zeros((4, 4), np.int64), np.eye(4, dtype=np.int64), truth_ids=[2**64 - 1])
    assert row["missed_ids"] == str(2**64 - 1)

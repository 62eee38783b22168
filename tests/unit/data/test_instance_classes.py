"""Instances and their classes as a data set reads them: none at all, at the border, ids with gaps, no class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.io import write_image
from voxelry.tasks.segment.targets import make_targets

AS_IT_IS = Preprocess(orientation=None)


def read(root: Path, instances: np.ndarray, labels: np.ndarray | None) -> Sample:
    space = Space.from_spacing(instances.shape, (2.0, 0.5, 0.7)[-instances.ndim :])
    image = np.arange(instances.size, dtype=np.float32).reshape(1, *instances.shape)
    write_image(root / "volumes/a.mha", image, space)
    write_image(root / "instances/a.mha", instances[None], space)
    if labels is not None:
        write_image(root / "labels/a.mha", labels[None], space)
    return VolumeDataset(find_cases(root), preprocess=AS_IT_IS)[0]


@pytest.mark.parametrize("shape", [(8, 10), (6, 8, 10)])
def test_ids_with_gaps_and_objects_at_the_border(tmp_path, shape):
    corner, middle = (slice(0, 4),) * len(shape), (slice(2, 5), *(slice(4, 7),) * (len(shape) - 1))
    instances, labels = np.zeros((2, *shape), np.int32)
    instances[corner], instances[middle] = 900, 7
    labels[corner], labels[middle] = 1, 2
    sample = read(tmp_path, instances, labels)
    np.testing.assert_array_equal(sample.masks, np.select([instances == 7, instances == 900], [1, 2]))
    assert sample.classes.tolist() == [2, 1]
    edges = [[*(part.start - 0.5 for part in at), *(part.stop - 0.5 for part in at)] for at in (middle, corner)]
    assert sample.boxes.tolist() == edges
    targets = make_targets(collate([sample]), 2)
    assert targets.classes[0].tolist() == [2, 1]
    with pytest.raises(DataError, match="a: no class labels for its instances"):
        make_targets(collate([sample.replace(classes=None)]), 2)


@pytest.mark.parametrize("shape", [(8, 10), (6, 8, 10)])
@pytest.mark.parametrize("labelled", [False, True])
def test_an_image_without_objects_is_learned_from(tmp_path, shape, labelled):
    nothing = np.zeros(shape, np.uint8)
    sample = read(tmp_path, nothing, nothing if labelled else None)
    targets = make_targets(collate([sample]), 2)
    assert (len(targets.boxes[0]), len(targets.classes[0]), int(targets.masks.max())) == (0, 0, 0)


def test_an_object_in_the_background_and_an_unknown_class_are_refused(tmp_path):
    instances = np.zeros((8, 10), np.uint8)
    instances[2:5, 3:7] = 1
    for value, fault in ((0, r"class 0 \(all of its voxels are background in labels/\)"), (3, "class 3")):
        sample = read(tmp_path, instances, instances * value)
        with pytest.raises(DataError, match=f"a: an instance of {fault}; expected 1 to 2"):
            make_targets(collate([sample]), 2)
        assert make_targets(collate([sample]), 1).classes[0].tolist() == [1]

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.metrics.labels import dice


def test_each_class_has_its_own_overlap():
    prediction, truth = np.array([[1, 1, 2], [0, 0, 3]]), np.array([[1, 0, 2], [0, 1, 2]])
    assert dice(prediction, truth) == {1: 0.5, 2: pytest.approx(2 / 3), 3: 0.0}


def test_a_map_with_itself_is_perfect_and_two_empty_ones_have_no_class():
    labels = torch.randint(0, 4, (5, 6, 7))
    assert dice(labels, labels) == {1: 1.0, 2: 1.0, 3: 1.0}
    assert dice(labels > 9, labels > 9) == {}
    assert dice(labels > 1, labels > 1) == {1: 1.0}
    assert dice(labels - 1, labels - 1) == {1: 1.0, 2: 1.0}  # -1 is background


def test_grey_values_are_refused():
    with pytest.raises(SettingError, match="prediction: Dice is of label maps, expected integers, got float"):
        dice(np.random.default_rng(0).random((4, 4)), np.ones((4, 4), dtype=int))
    with pytest.raises(SettingError, match="shape"):
        dice(np.ones((4, 4), dtype=int), np.ones((4, 5), dtype=int))

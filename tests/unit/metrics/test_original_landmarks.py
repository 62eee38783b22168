"""An earlier project's landmark scores, against its definitions written out on whole maps."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from voxelry.metrics.original_landmarks import original_landmark_scores


def fused(pixels, shape):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    maps = [np.exp(-((grid - np.reshape(p, (-1, *[1] * len(shape)))) ** 2).sum(axis=0) / 50) for p in pixels]
    return np.maximum.reduce([one >= 0.5 * one.max() for one in maps])


def oks(squared):
    return np.exp(-squared / (2 * 0.1**2))


def precision(similarity):
    return np.mean([(similarity >= threshold).mean() for threshold in np.arange(0.5, 1.0, 0.05)])


@pytest.mark.parametrize("shape", [(40, 56), (20, 24, 32)])
def test_scores_are_those_of_whole_maps(rng, shape):
    truth = rng.uniform(4, np.array(shape) - 5, (6, len(shape)))
    predicted = truth + rng.normal(0, 1.5, truth.shape)
    predicted[0] = truth[0]
    own, true = np.rint(predicted + 0.5), np.rint(truth + 0.5)
    maps = fused(own, shape), fused(true, shape)
    found = original_landmark_scores(predicted, truth, shape)
    assert found["mse"] == pytest.approx(np.mean((own - true) ** 2))
    assert found["map_keypoints"] == pytest.approx(precision(oks(((own - true) ** 2).sum(axis=1))))
    assert found["iou"] == pytest.approx((maps[0] & maps[1]).sum() / (maps[0] | maps[1]).sum())
    rows = [one.reshape(-1, shape[-1]).astype(float) for one in maps]
    assert found["map_heatmaps"] == pytest.approx(precision(oks(cdist(*rows) ** 2)))
    distances = np.linalg.norm(own - true, axis=1)
    assert found["mre"] == pytest.approx(distances.mean())
    assert found["sdr_2.5"] == pytest.approx((distances <= 2.5).mean())


def test_the_hand_is_measured_by_its_wrist():
    truth = np.tile([[10.2, 10.2]], (37, 1))
    truth[4] = [10.2, 35.2]
    assert original_landmark_scores(truth + np.array([0, 3]), truth, (64, 64))["mre"] == pytest.approx(6)


def test_cephalometric_images_have_their_sizes_swapped_there():
    truth = np.full((19, 2), 100.2)
    found = original_landmark_scores(truth + np.array([0, 1]), truth, (256, 256))
    assert found["mre"] == pytest.approx(2400 / 256 * 0.1)


def test_a_point_that_was_not_found_lies_in_the_corner_and_one_that_is_not_there_does_not_count():
    truth = np.array([[8.2, 6.2], [np.nan, np.nan]])
    found = original_landmark_scores(np.full((2, 2), np.nan), truth, (32, 32))
    assert found["mse"] == pytest.approx((9**2 + 7**2) / 2)
    assert np.isnan(original_landmark_scores(truth, np.full((2, 2), np.nan), (32, 32))["iou"])

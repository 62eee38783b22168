"""The landmark task on tiny networks and on data with an oblique, mirrored, anisotropic affine."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.sample import Batch, Sample
from voxelry.models.unet import UNet
from voxelry.nn import nd
from voxelry.ops.heatmaps import gaussian_heatmaps
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.landmarks import LandmarkTask, losses, report, to_landmark_set
from voxelry.tasks.landmarks.calibration import LEVELS, Calibration, conformal_quantile
from voxelry.tasks.landmarks.ensemble import average_views, make_views, swap_order
from voxelry.tasks.landmarks.refine import coarsen, crop_batch, crop_starts, to_coarse, to_fine
from voxelry.tasks.landmarks.targets import make_targets
from voxelry.viz.report import Report

NAN = float("nan")
SHAPES = {2: (20, 26), 3: (12, 20, 26)}


def oblique(shape: tuple[int, ...]) -> Space:
    """Tilted by 20 degrees, one axis mirrored, 3 x 1.2 x 0.8 mm (the last two at rank 2)."""
    ndim, angle = len(shape), math.radians(20)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    axes = turn @ np.diag([-0.8, 1.2, 3.0])[:, ::-1]
    affine = np.zeros((4, ndim + 1))
    affine[:3, :ndim] = axes[:, 3 - ndim :]
    affine[:, ndim] = (12.0, -30.0, 7.5, 1.0)
    return Space(shape, affine)


def make_sample(points: list[list[float]], ndim: int, name: str = "case") -> Sample:
    """An image whose channel k is a blob at point k, so that a 1 x 1 convolution can find them."""
    space, landmarks = oblique(SHAPES[ndim]), torch.tensor(points)
    image = gaussian_heatmaps(landmarks[None], space.shape, sigma=2.0, spacing=space.spacing)[0]
    return Sample(image, space, name, landmarks=landmarks, landmark_names=("left", "right"))


def make_samples(ndim: int) -> list[Sample]:
    first = [[4.3, 8.6, 11.2], [7.1, 12.4, 17.9]]
    second = [[6.2, 10.1, 9.4], [NAN, NAN, NAN]]
    return [
        make_sample([point[3 - ndim :] for point in points], ndim, name)
        for name, points in (("a", first), ("b", second))
    ]


def make_batch(ndim: int) -> Batch:
    return collate(make_samples(ndim))


class Copy(nn.Module):
    """Answers logits that are the logarithm of the image: the softmax is the blob itself."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * image.clamp(min=1e-12).log()


def make_task(ndim: int, **settings) -> LandmarkTask:
    return LandmarkTask(Copy(), landmark_names=("left", "right"), ndim=ndim, **{"input_range": (0, 1), **settings})


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("decoder", ["local", "gaussian", "expectation"])
def test_points_come_out_in_the_world_of_the_input(ndim, decoder):
    batch = make_batch(ndim)
    predictions = make_task(ndim, decoder=decoder).predict(batch)
    expected = batch.spaces[0].to_world(batch.landmarks[0].double().numpy())
    np.testing.assert_allclose(predictions[0].world, expected, atol=0.1)
    np.testing.assert_allclose(predictions[0].index, batch.landmarks[0], atol=0.1)
    assert predictions[0].names == ("left", "right")
    assert predictions[1].name == "b"
    # the blob has 2 mm along each axis
    np.testing.assert_allclose(predictions[0].spread_mm, 2.0 * math.sqrt(ndim), atol=0.1)
    assert predictions[0].radii_mm.shape == (2, len(LEVELS))
    np.testing.assert_array_equal(predictions[0].uncertainty_mm, predictions[0].radius(0.95))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "MSELoss", "BCEWithLogitsLoss"])
@pytest.mark.parametrize("target", ["gaussian", "disc"])
def test_a_few_steps_of_training_lower_every_loss(ndim, loss, target):
    batch = make_batch(ndim)
    network = nd.conv(ndim)(2, 2, 3, padding=1)
    task = LandmarkTask(
        network, num_landmarks=2, ndim=ndim, loss=loss, target=target, coordinate_weight=0.1, presence=True
    )
    optimizer = torch.optim.Adam(task.parameters(), lr=0.02)
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        found = task.training_loss(batch)
        found["loss"].backward()
        optimizer.step()
        history.append(found["loss"].item())
    assert {"loss", "heatmap", "distance_mm", "presence"} <= set(found)
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_an_absent_landmark_does_not_train_its_map(loss):
    batch = make_batch(2)
    batch.landmarks[:, 1] = NAN
    network = nd.conv(2)(2, 2, 1)
    task = LandmarkTask(network, num_landmarks=2, ndim=2, loss=loss, coordinate_weight=1.0)
    task.training_loss(batch)["loss"].backward()
    assert network.weight.grad[0].abs().sum() > 0
    assert network.weight.grad[1].abs().sum() == 0


@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_with_presence_an_absent_landmark_lowers_its_score(loss):
    batch = make_batch(2)
    batch.landmarks[:, 1] = NAN
    network = nd.conv(2)(2, 2, 1)
    task = LandmarkTask(network, num_landmarks=2, ndim=2, loss=loss, presence=True)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        task.training_loss(batch)["loss"].backward()
        optimizer.step()
    for prediction in task.predict(batch):
        assert prediction.presence[1] < 0.2
        assert prediction.presence[0] > 0.5


def test_training_on_all_absent_landmarks_is_zero_and_finite():
    batch = make_batch(3)
    batch.landmarks[:] = NAN
    found = make_task(3, coordinate_weight=1.0).training_loss(batch)
    found["loss"].backward()
    assert found["loss"].item() == 0


def test_cross_entropy_is_least_where_the_prediction_is_the_target():
    targets = make_targets(make_batch(2), 2, sigma=2.0, normalised=True)
    exact = targets.heatmaps.clamp(min=1e-12).log()
    entropy = -(targets.heatmaps * exact).flatten(2).sum(dim=-1)[targets.present].mean()
    found = losses.heatmap_loss(exact, targets.heatmaps, targets.present, "ce")
    assert found.item() == pytest.approx(entropy.item(), rel=1e-4)
    assert losses.heatmap_loss(exact + torch.randn_like(exact), targets.heatmaps, targets.present, "ce") > found


def test_blob_and_background_weigh_the_same():
    target = gaussian_heatmaps(torch.tensor([[[9.0, 9.0]]]), (40, 40), sigma=1.5)
    counted = torch.ones(1, 1, dtype=torch.bool)
    empty = losses.heatmap_loss(torch.zeros_like(target), target, counted, "mse")
    full = losses.heatmap_loss(torch.ones_like(target), target, counted, "mse")
    # in the plane, the sums of t, t² and t³ over a Gaussian are as 1 : 1/2 : 1/3; unweighted, an empty map would
    # cost 0.004 and be a good answer
    assert empty.item() == pytest.approx(1 / 3 / 2, rel=0.03)
    assert full.item() == pytest.approx((1 + 1 - 2 / 2 + 1 / 3) / 2, rel=0.03)


def test_coordinate_loss_is_the_distance_in_mm():
    points = torch.tensor([[[5.0, 6.0]]])
    logits = torch.full((1, 1, 12, 14), -1e4)
    logits[0, 0, 8, 10] = 1e4
    counted = torch.ones(1, 1, dtype=torch.bool)
    distance = losses.coordinate_distance(logits, points, torch.tensor([[2.0, 0.5]]), counted)
    assert distance.item() == pytest.approx(math.hypot(3 * 2.0, 4 * 0.5), rel=1e-4)


def test_presence_of_the_whole_is_that_of_its_parts():
    logits = torch.randn(1, 2, 8, 10)
    whole = losses.presence_logits(logits, "ce")
    parts = [losses.presence_logits(part, "ce") for part in logits.split(4, dim=2)]
    assert_close(whole, torch.logaddexp(*parts))


@pytest.mark.parametrize("ndim", [2, 3])
def test_tiles_find_what_the_whole_finds(ndim):
    batch = make_batch(ndim)
    whole = make_task(ndim).predict(batch)
    tiled = make_task(ndim, tile_size=11, tile_overlap=0.5).predict(batch)
    present = batch.landmarks.isfinite().all(dim=-1)  # the map of an absent one is flat: any voxel is its maximum
    for sample, (one, other) in enumerate(zip(whole, tiled, strict=True)):
        np.testing.assert_allclose(one.world[present[sample]], other.world[present[sample]], atol=1e-3)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("coarse", [1, 2])
def test_refinement_recovers_what_the_coarse_pass_loses(ndim, coarse):
    batch = make_batch(ndim)
    task = make_task(ndim, refine=11, coarse=coarse)
    truth = batch.spaces[0].to_world(batch.landmarks[0].double().numpy())
    np.testing.assert_allclose(task.predict(batch)[0].world, truth, atol=0.2)
    found = task.training_loss(batch)
    found["loss"].backward()
    assert {"coarse", "fine", "loss"} <= set(found)
    assert torch.isfinite(found["loss"])


def test_coarse_and_fine_coordinates_are_the_same_place():
    batch = make_batch(3)
    factor = (1, 2, 3)
    small = coarsen(batch, factor)
    assert small.image.shape[2:] == (12, 10, 9)
    for sample in range(2):
        moved = small.spaces[sample].to_world(small.landmarks[sample].double().numpy())
        kept = batch.spaces[sample].to_world(batch.landmarks[sample].double().numpy())
        np.testing.assert_allclose(moved, kept, atol=1e-4)
    assert_close(to_fine(to_coarse(batch.landmarks, factor), factor), batch.landmarks, equal_nan=True)
    assert small.image[0, 0, 0, 0, 0].item() == pytest.approx(batch.image[0, 0, 0, :2, :3].mean().item())


def test_crops_keep_the_world_and_stay_inside():
    batch = make_batch(3)
    starts = crop_starts(batch.landmarks[:, 0] + 100, batch.image.shape[2:], (6, 6, 40))
    assert starts.tolist() == [[6, 14, 0]] * 2
    crops = crop_batch(batch, [1, 0], starts, (6, 6, 40))
    assert crops.names == ["b", "a"]
    assert crops.image.shape == (2, 2, 6, 6, 26)
    here = crops.spaces[1].to_world(crops.landmarks[1].double().numpy())
    np.testing.assert_allclose(here, batch.spaces[0].to_world(batch.landmarks[0].double().numpy()), atol=1e-4)
    assert crop_starts(torch.full((1, 3), NAN), (12, 20, 26), (6, 6, 6)).tolist() == [[3, 7, 10]]


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_equivariant_network_gives_the_same_answer_for_every_view(ndim):
    image = torch.zeros(1, 2, *SHAPES[ndim])
    image[(slice(None), slice(None), *(slice(4, -4),) * ndim)] = torch.rand(1, 2, *(s - 8 for s in SHAPES[ndim]))
    views = make_views(ndim, shift=2, flips=(ndim - 1,))
    assert len(views) == 2 * (1 + 2 * ndim)
    assert_close(average_views(image, lambda x: x * 2, views, [0, 1]), image * 2)


def test_a_mirror_image_swaps_the_names_of_a_pair():
    """A network that calls whatever lies to the left `left` is right in the mirror, too, after the swap."""
    image = torch.zeros(1, 1, 4, 10)
    image[0, 0, 1, 2] = image[0, 0, 2, 7] = 1.0

    def network(x: Tensor) -> Tensor:
        left = torch.arange(10) < 5
        return torch.cat([x * left, x * ~left], dim=1)

    order = swap_order(("left", "right"), [("left", "right")])
    assert order == [1, 0]
    views = make_views(2, flips=(1,))
    assert_close(average_views(image, network, views, order), network(image))
    assert not torch.allclose(average_views(image, network, views, [0, 1]), network(image))


def test_swaps_of_unknown_or_repeated_names_are_refused():
    for pairs in ([("a", "x")], [("a", "a")], [("a", "b"), ("b", "c")], [("a", "b", "c")]):
        with pytest.raises(SettingError, match="swap"):
            swap_order(("a", "b", "c"), pairs)


def test_conformal_quantiles_by_hand():
    scores = np.arange(1.0, 20.0)  # 19 scores: the 95 % quantile is the largest, ceil(20 * 0.95) = 19
    assert conformal_quantile(scores, 0.95) == 19.0
    assert conformal_quantile(scores, 0.5) == 10.0
    assert conformal_quantile(scores[:18], 0.95) == math.inf


def test_calibrated_radii_cover_new_cases(rng):
    calibration = Calibration(3, 3)
    spread = rng.uniform(0.5, 3.0, size=(400, 3))
    error = spread * rng.rayleigh(size=(400, 3)) * np.array([0.5, 1.0, 2.0])
    calibration.fit(spread[:200], error[:200])
    radii = calibration.radii(torch.from_numpy(spread[200:])).numpy()
    for position, level in enumerate(LEVELS):
        covered = (error[200:] <= radii[..., position]).mean()
        assert abs(covered - level) < 0.05
    assert calibration.cases.item() == 200


def test_few_cases_fall_back_on_all_landmarks_and_none_is_an_error():
    calibration = Calibration(2, 2)
    calibration.fit(np.ones((5, 2)), np.array([[1.0, 4.0]] * 5))
    assert calibration.factors[:, 0].tolist() == [1.0, 4.0]
    assert calibration.factors[:, 2].tolist() == [4.0, 4.0]
    with pytest.raises(DataError, match="calibration"):
        calibration.fit(np.full((1, 2), NAN), np.ones((1, 2)))


def test_cases_without_any_position_leave_the_radii_as_they_are():
    batch, task = make_batch(2), make_task(2)
    before = task.predict(batch)
    nowhere = [sample.replace(landmarks=torch.full_like(sample.landmarks, NAN)) for sample in make_samples(2)]
    task.calibrate(before, nowhere)
    np.testing.assert_array_equal(task.predict(batch)[0].radii_mm, before[0].radii_mm)
    assert task.calibration.cases.item() == 0


def test_calibration_is_saved_with_the_weights():
    batch = make_batch(2)
    task = make_task(2)
    task.calibrate(task.predict(batch), make_samples(2))
    again = make_task(2)
    again.load_state_dict(task.state_dict())
    np.testing.assert_array_equal(again.predict(batch)[0].radii_mm, task.predict(batch)[0].radii_mm)
    assert not np.allclose(make_task(2).predict(batch)[0].radii_mm, task.predict(batch)[0].radii_mm)


def test_rows_and_summary_against_the_original_points():
    batch = make_batch(3)
    task = make_task(3, decoder="gaussian")
    rows = task.metrics(task.predict(batch), batch)
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[1]["present.right"] == 0
    summary = task.summary(rows)
    assert summary[task.monitor] < 0.05
    assert summary["points"] == 3
    assert summary["sdr_1mm"] == 1.0


def test_settings_make_the_same_task_again():
    task = make_task(3, sigma=(3.0, 2.0, 2.0), loss="MSELoss", swap=[("left", "right")], tile_size=(8, 8, 8))
    settings = json.loads(json.dumps(task.settings()))
    again = LandmarkTask(Copy(), **settings)
    assert again.settings() == task.settings()
    assert again.names == ("left", "right")
    assert again.sigma == (3.0, 2.0, 2.0)


def test_a_prediction_becomes_a_landmark_set():
    prediction = make_task(3).predict(make_batch(3))[0]
    found = to_landmark_set(prediction)
    assert tuple(found.names) == ("left", "right")
    np.testing.assert_allclose(found.world, prediction.world)
    np.testing.assert_allclose(found.extras["uncertainty_mm"], prediction.uncertainty_mm)
    assert np.isnan(to_landmark_set(prediction, presence_threshold=1.5).world).all()


def test_a_unet_and_its_rank_are_understood():
    network = UNet(ndim=2, out_channels=2, width=8, multipliers=(1, 2), groups=4)
    task = LandmarkTask(network, num_landmarks=2)
    assert task.ndim == 2
    batch = make_batch(2)
    batch.image = batch.image[:, :1]
    task.training_loss(batch)["loss"].backward()
    assert all(np.isfinite(prediction.world).all() for prediction in task.eval().predict(batch))


def test_the_network_sees_its_range_and_its_time_step():
    class Record(nn.Module):
        def forward(self, image: Tensor, time: Tensor | None = None) -> Tensor:
            self.seen = image.min().item(), image.max().item(), None if time is None else time.tolist()
            return image

    batch, network = make_batch(2), Record()
    high = batch.image.max().item()
    LandmarkTask(network, num_landmarks=2, ndim=2).predict(batch)
    assert network.seen == (pytest.approx(-1.0), pytest.approx(2 * high - 1), None)
    LandmarkTask(network, num_landmarks=2, ndim=2, input_range=(0, 4), time_step=3).predict(batch)
    assert network.seen == (pytest.approx(0.0), pytest.approx(4 * high), [3, 3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "focal"}, "loss: expected"),
        ({"decoder": "best"}, "decoder: expected"),
        ({"target": "square"}, "target: expected"),
        ({"sigma": (1.0, 2.0)}, "sigma"),
        ({"sigma": 0.0}, "sigma: expected positive"),
        ({"coarse": 2}, "coarse"),
        ({"tile_size": 8, "tile_overlap": 1.0}, "tile_overlap"),
        ({"ensemble_flips": (3,)}, "ensemble"),
        ({"num_landmarks": 3}, "num_landmarks"),
        ({"input_range": (1, 0)}, "input_range"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=message):
        make_task(3, **settings)


def test_names_must_be_given_and_differ():
    with pytest.raises(SettingError, match="num_landmarks"):
        LandmarkTask(Copy(), ndim=2)
    with pytest.raises(SettingError, match="landmark_names"):
        LandmarkTask(Copy(), ndim=2, landmark_names=("a", "a"))


def test_data_that_does_not_fit_is_named():
    batch = make_batch(3)
    with pytest.raises(DataError, match="a: 2 landmarks, but the model has 3"):
        LandmarkTask(Copy(), num_landmarks=3).training_loss(batch)
    with pytest.raises(SettingError, match="rank"):
        make_task(2).predict(batch)
    with pytest.raises(SettingError, match="network: expected 3 maps"):
        LandmarkTask(Copy(), num_landmarks=3).predict(batch)
    batch.landmarks = None
    for ask in (make_task(3).training_loss, make_task(3, refine=8).training_loss):
        with pytest.raises(DataError, match="a: no landmarks"):
            ask(batch)
    with pytest.raises(DataError, match="a: no landmarks"):
        make_task(3).metrics([], batch)


def test_the_baseline_stands_beside_the_model_and_travels_with_it():
    batch = make_batch(2)
    task = make_task(2)
    assert math.isnan(task.summary(task.metrics(task.predict(batch), batch))["mean_position_mm"])
    task.fit_baseline(make_samples(2))
    again = make_task(2)
    again.load_state_dict(task.state_dict())
    rows = again.metrics(again.predict(batch), batch)
    # the second landmark is known in one case only, so that its mean is the truth; the first errs by half the gap
    worlds = zip(batch.spaces, batch.landmarks, strict=True)
    first = [space.to_world(points[0].double().numpy()) for space, points in worlds]
    gap = float(np.linalg.norm(first[0] - first[1]))
    assert rows[0]["mean_position_mm"] == pytest.approx(gap / 4, rel=1e-4)
    assert rows[1]["mean_position_mm"] == pytest.approx(gap / 2, rel=1e-4)
    assert again.summary(rows)["mean_position_mm"] == pytest.approx(gap * 3 / 8, rel=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_report_holds_every_section(ndim, tmp_path):
    batch = make_batch(ndim)
    samples = [
        Sample(image, space, name, landmarks=points)
        for image, space, name, points in zip(batch.image, batch.spaces, batch.names, batch.landmarks, strict=True)
    ]
    task = make_task(ndim, presence=True)
    predictions = task.predict(batch)
    rows = task.metrics(predictions, batch)
    page = report.add_results(Report("points"), task, Evaluation(rows, {}, predictions, samples))
    report.add_few_shot(page, [5, 10], {"scratch": [[2.0, 1.5], [2.2, NAN]]}, baseline={"mean position": 2.5})
    html = page.save(tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Errors", "Uncertainty", "Best case, ", "Worst case, ", "Few labels", "2.10 ± 0.10", "left", "right"):
        assert text in html
    assert html.count("<img") + html.count("<svg") >= 5


def test_the_report_of_cases_without_points_does_not_fail():
    batch = make_batch(2)
    batch.landmarks[:] = NAN
    task = make_task(2)
    predictions = task.predict(batch)
    rows = task.metrics(predictions, batch)
    samples = [
        Sample(image, space, name) for image, space, name in zip(batch.image, batch.spaces, batch.names, strict=True)
    ]
    assert (
        "Every held-out case"
        in report.add_results(Report("points"), task, Evaluation(rows, {}, predictions, samples)).html()
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_sigma_may_be_in_voxels(ndim):
    batch = make_batch(ndim)
    scaled = make_targets(batch, 2, sigma=2.0, normalised=False, unit="voxel").heatmaps[0, 0]
    peak = batch.landmarks[0, 0]
    for axis in range(ndim):
        low, high = (peak.round().long().clone() for _ in range(2))
        high[axis] += 2
        values = [scaled[tuple(place.tolist())] for place in (low, high)]
        offsets = [float(place[axis] - peak[axis]) for place in (low, high)]
        expected = (offsets[0] ** 2 - offsets[1] ** 2) / (2 * 2.0**2)
        assert float(values[1].log() - values[0].log()) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(SettingError, match="sigma_unit: expected one of mm, voxel"):
        make_task(ndim, sigma_unit="cm")


@pytest.mark.parametrize("ndim", [2, 3])
def test_labels_are_learned_beside_the_points_and_left_out_of_the_answer(ndim):
    samples = make_samples(ndim)
    labels = [(sample.image[0] > 0.1).long() for sample in samples]
    batch = collate([sample.replace(labels=values) for sample, values in zip(samples, labels, strict=True)])
    network = UNet(ndim=ndim, in_channels=2, out_channels=4, width=8, multipliers=(1, 2), groups=4, attention="none")
    task = LandmarkTask(network, landmark_names=["a", "b"], ndim=ndim, label_classes=2)
    losses_ = task.training_loss(batch)
    assert losses_["loss"].item() == pytest.approx(losses_["heatmap"].item() + losses_["labels"].item())
    losses_["labels"].backward()
    assert float(network.head.weight.grad[2:].abs().sum()) > 0
    assert float(network.head.weight.grad[:2].abs().sum()) == 0
    assert task.eval().predict(batch)[0].world.shape == (2, 3)
    with pytest.raises(DataError, match="a: no labels; expected 2 classes"):
        task.training_loss(make_batch(ndim))
    with pytest.raises(SettingError, match="label_classes: expected labels below 2, got 7"):
        task.training_loss(collate([sample.replace(labels=labels[0] * 7) for sample in samples]))
    with pytest.raises(SettingError, match="label_classes: expected 0 with refine"):
        make_task(ndim, label_classes=2, refine=8)

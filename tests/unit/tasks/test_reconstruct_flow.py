"""Hypotheses of shapes, on balls whose geometry is known."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.slices.case import ViewSettings, build_case, collate_slices
from voxelry.data.slices.cut import take_slice
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.models.shape import ShapeFlow, ShapeNet
from voxelry.ops.sdf import canonical_space
from voxelry.tasks.reconstruct import ReconstructFlowTask, ReconstructPrediction, ReconstructTask
from voxelry.tasks.reconstruct.spread import HypothesisCalibration, spread_metrics
from voxelry.tasks.reconstruct.targets import mean_shape

SMALL = {
    "image_size": 24, "grid": 16, "prior_grid": 16, "width": 8, "multipliers": (1, 2), "volume_width": 8,
    "volume_multipliers": (1, 2), "context": 16, "latent_grid": 4, "autoencoder_width": 8, "flow_width": 16,
    "flow_depth": 1,
}  # fmt: skip
SPACE = Space(  # oblique, mirrored, anisotropic
    (20, 24, 28),
    np.array([[0.1, 0.2, -1.5, 30.0], [0.1, 2.0, 0.1, -8.0], [2.5, -0.1, 0.1, 5.0], [0, 0, 0, 1.0]]),
)
MIDDLE = np.asarray(SPACE.to_world([10.0, 12.0, 14.0]))


def distances(space, centre=MIDDLE):
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    return np.linalg.norm(space.to_world(index.astype(float)) - centre, axis=-1)


def ball_case(radius=9.0, *, axis=0, give_mask=False, name="ball"):
    mask = distances(SPACE) < radius
    image, labels = torch.from_numpy(mask.astype(np.float32))[None], torch.from_numpy(mask.astype(np.int64))
    cut = take_slice(image, labels, SPACE, name=name, axis=axis, index=(10, 12, 14)[axis])
    at = torch.from_numpy(np.asarray(cut.space.to_index(MIDDLE))).float()
    shape = OrganShape.of_mask(mask, SPACE, 12.0)
    views = ViewSettings(image_size=24, grid=16, truncation=12.0)
    case = build_case([cut.replace(click=at)], edge=48.0, views=views, give_mask=give_mask, shape=shape)
    return case.replace(truth=torch.from_numpy(mask))


def flow_task(**settings):
    network = ShapeFlow(**SMALL)
    shape = OrganShape.of_mask(distances(SPACE) < 9, SPACE, 12.0)
    network.set_mean_shape(mean_shape([shape], 48.0, 16, 12.0))
    return ReconstructFlowTask(
        network, **{"edges": [48.0], "baseline_shapes": 1, "contour": 0, "samples": 3, "steps": 2, **settings}
    )


def coarse(network):
    """Latents that are distances on the coarse grid: what an autoencoder would have to learn first."""
    network.latents = lambda sdf: torch.nn.functional.avg_pool3d(sdf, 2) / 0.1
    network.shapes = lambda latents: torch.nn.functional.interpolate(0.1 * latents, scale_factor=2, mode="trilinear")
    return network


@pytest.fixture(scope="module")
def able():
    """A task whose hypotheses are balls with small bumps."""
    torch.manual_seed(0)
    network = coarse(ShapeFlow(**{**SMALL, "latent_channels": 1, "latent_grid": 8}))
    shape = OrganShape.of_mask(distances(SPACE) < 9, SPACE, 12.0)
    network.set_mean_shape(mean_shape([shape], 48.0, 16, 12.0))
    network.error.fill_(0.3)
    settings = {"edges": [48.0], "baseline_shapes": 1, "contour": 0, "samples": 3, "steps": 2}
    return ReconstructFlowTask(network, **settings).eval()


def grown(module):
    return {name for name, value in module.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}


def test_the_first_part_trains_the_autoencoder_and_the_second_the_flow_on_what_it_was():
    task = flow_task(autoencoder_share=0.5).train()
    batch = collate_slices([ball_case(8.0), ball_case(11.0, axis=1)])
    coder = task.network.autoencoder
    task.on_progress(0.4)
    found = task.training_loss(batch)
    found["loss"].backward()
    assert {"coded", "divergence", "overlap"} <= set(found)
    assert "flow" not in found
    assert not grown(task.network.flow)
    assert grown(coder.down)
    assert int(coder.batches) == 1
    assert grown(task.network.decoder)  # the answer without the flow learns all the time
    std = coder.latent_std.clone()
    task.zero_grad()
    task.on_progress(0.5)
    found = task.training_loss(batch)
    found["loss"].backward()
    assert {"coded", "flow", "overlap"} <= set(found)
    assert not grown(coder.down) | grown(coder.narrow)
    assert grown(coder.up)
    assert grown(task.network.flow)
    assert grown(task.network.decoder)
    assert torch.equal(coder.latent_std, std)
    assert int(task.network.batches) == 1


def test_an_autoencoder_without_a_share_still_sees_a_batch():
    task = flow_task(autoencoder_share=0.0).train()
    assert "divergence" in task.training_loss(collate_slices([ball_case()]))
    assert "flow" in task.training_loss(collate_slices([ball_case()]))


def test_shapes_come_through_the_autoencoder_better_and_better_in_both_parts():
    task = flow_task(autoencoder_share=0.5).train()
    batch = collate_slices([ball_case(7.0), ball_case(12.0, axis=2)])
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    coded = []
    for step in range(48):
        task.on_progress(step / 48)
        found = task.training_loss(batch)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        coded.append(found["coded"].item())
    first, middle, last = np.mean(coded[:4]), np.mean(coded[20:24]), np.mean(coded[-4:])
    assert middle < 0.8 * first
    assert last < 0.9 * middle


def test_the_answer_is_the_mean_of_the_hypotheses(able):
    batch = collate_slices([ball_case(9.0), ball_case(10.0, axis=1)])
    (first, second) = able.predict(batch)
    assert len(first.hypotheses) == len(second.hypotheses) == 3
    np.testing.assert_allclose(first.sdf, np.mean(first.hypotheses, axis=0), atol=1e-4)
    assert 0.1 < np.abs(first.hypotheses[0] - first.hypotheses[1])[np.abs(first.sdf) < 4].mean() < 2
    assert first.mesh.values["spread_mm"].shape == (len(first.mesh.vertices),)
    again = able.predict(batch)[0]
    np.testing.assert_array_equal(first.sdf, again.sdf)
    alone = able.predict(collate_slices([ball_case(9.0)]))[0]  # in other company the same hypotheses
    np.testing.assert_allclose(alone.sdf, first.sdf, atol=1e-3)
    (other,) = flow_like(able, noise_seed=1).predict(collate_slices([ball_case(9.0)]))
    assert np.abs(other.sdf - first.sdf).max() > 1e-3


def flow_like(task, **changes):
    again = ReconstructFlowTask(task.network, **{**task.settings(), **changes})
    again.calibration.load_state_dict(task.calibration.state_dict())
    return again.eval()


def test_samples_steps_and_sampler_can_be_asked_for(able):
    batch = collate_slices([ball_case(9.0)])
    calls = []
    handle = able.network.flow.register_forward_hook(lambda *_: calls.append(1))
    (found,) = able.predict(batch, samples=5, steps=3)
    assert len(found.hypotheses) == 5
    assert len(calls) == 5  # heun: 2 N - 1, for all samples at once
    (one,) = able.predict(batch, samples=1, sampler="euler", steps=4)
    handle.remove()
    assert len(calls) == 9
    assert not one.hypotheses
    assert (able.samples, able.steps, able.sampler) == (3, 2, "heun")
    first = able.predict(batch)[0]
    more = able.predict(batch, samples=5)[0].hypotheses
    np.testing.assert_allclose(first.hypotheses, more[:3], atol=1e-3)  # the first three stay what they are
    for wrong, word in (({"samples": 0}, "samples"), ({"steps": 0}, "steps"), ({"sampler": "rk4"}, "sampler")):
        with pytest.raises(SettingError, match=word):
            able.predict(batch, **wrong)


@pytest.mark.parametrize("samples", [3, 4, 5])
def test_looks_in_other_frames_share_the_hypotheses_out(able, samples):
    task = flow_like(able, recentre=True, mirror=True)
    (found,) = task.predict(collate_slices([ball_case(9.0)]), samples=samples)
    assert len(found.hypotheses) == samples


def test_a_given_mask_leaves_hypotheses_no_choice_on_its_slice(able):
    task = flow_like(able, contour=4.0)
    case = ball_case(11.0, give_mask=True)
    (found,) = task.predict(collate_slices([case]))
    assert found.on_slice_mm < 1.0
    on = [found.distances(found.views[0]), *[each_on(found, one) for one in found.hypotheses]]
    at_outline = np.abs(on[0]) < 0.5
    assert max(np.abs(one - on[0])[at_outline].max() for one in on[1:]) < 0.75


def each_on(prediction, sdf):
    from dataclasses import replace

    return replace(prediction, sdf=sdf).distances(prediction.views[0])


def test_metrics_tell_spread_coverage_and_what_the_flow_brings(able):
    case = ball_case(9.0)
    able.fit_baseline([case])
    batch = collate_slices([case])
    (row,) = able.metrics(able.predict(batch), batch)
    assert 0 <= row["coverage_50"] <= row["coverage_90"] <= 1
    assert row["hypothesis_dice"] <= row["best_hypothesis_dice"] <= 1
    assert row["spread_mm"] > 0
    alone = able.without_flow()
    assert type(alone) is ReconstructTask
    (answer,) = alone.predict(batch)
    assert not answer.hypotheses
    mask, truth = answer.mask(), case.truth.numpy()
    assert row["without_flow_dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert set(able.summary([row])) >= {"dice", "coverage_90", "without_flow_dice"}


def prediction_of(radii, mean, name="ball"):
    frame = canonical_space(MIDDLE, 48.0, 32)
    away = distances(frame).astype(np.float32)
    return ReconstructPrediction(
        name=name, label=1, sdf=away - np.float32(mean), frame=frame, space=SPACE, clicks=MIDDLE[None], planes=(),
        views=(), probability=np.zeros((0, 1, 1), np.float32), hypotheses=tuple(away - np.float32(r) for r in radii),
    )  # fmt: skip


def test_calibration_makes_nine_of_ten_intervals_hold():
    fine = Space.from_spacing((28,) * 3, (1.0,) * 3, tuple(MIDDLE - 13.5))
    predictions, truths = [], []
    for off in 1.2 * norm.ppf((np.arange(10) + 0.5) / 10):  # normal of 1.2 mm; the hypotheses differ by 0.4 mm
        predictions.append(prediction_of([8.6, 9.4], 9.0))
        predictions[-1].space = fine
        truths.append(distances(fine) < 9.0 + off)
    calibration = HypothesisCalibration()
    before = np.mean([spread_metrics(*pair)["coverage_90"] for pair in zip(predictions, truths, strict=True)])
    assert before < 0.6
    calibration.fit(predictions, truths)
    assert int(calibration.cases) == 10
    assert calibration.factor.item() == pytest.approx(3.0, rel=0.3)
    after = []
    for prediction, truth in zip(predictions, truths, strict=True):
        mean = torch.from_numpy(prediction.sdf)
        shapes = calibration(torch.stack([torch.from_numpy(one) for one in prediction.hypotheses]), mean)
        told = prediction_of([0.0], 9.0)
        told.space, told.hypotheses = fine, tuple(one.numpy() for one in shapes)
        after.append(spread_metrics(told, truth)["coverage_90"])
    assert np.mean(after) == pytest.approx(0.9, abs=0.06)


def test_a_factor_makes_predictions_differ_more_and_keeps_their_mean(able):
    batch = collate_slices([ball_case(9.0)])
    (usual,) = able.predict(batch)
    task = flow_like(able)
    task.calibration.factor.fill_(2.0)
    (wide,) = task.predict(batch)
    np.testing.assert_array_equal(wide.sdf, usual.sdf)
    wider, narrow = (found.hypotheses[0] - usual.sdf for found in (wide, usual))
    np.testing.assert_allclose(wider, 2 * narrow, atol=1e-3)
    assert wide.mesh.values["spread_mm"].mean() > 1.5 * usual.mesh.values["spread_mm"].mean()


def test_calibration_without_hypotheses_or_truth_changes_nothing(able):
    calibration = HypothesisCalibration()
    calibration.fit([prediction_of([], 9.0), prediction_of([8.0, 10.0], 9.0)], [distances(SPACE) < 9, None])
    assert calibration.factor == 1
    assert calibration.cases == 0
    assert spread_metrics(prediction_of([], 9.0), distances(SPACE) < 9) == {}
    nothing = spread_metrics(prediction_of([8.0, 10.0], -5.0), distances(SPACE) < 9)
    assert np.isnan(nothing["coverage_90"])
    case = ball_case()
    task = flow_like(able)
    task.calibrate(task.predict(collate_slices([case])), [case])
    assert int(task.calibration.cases) == 1


def test_settings_make_the_same_task_again(able):
    again = ReconstructFlowTask(coarse(ShapeFlow(**able.network.settings())), **able.settings())
    again.load_state_dict(able.state_dict())
    assert again.settings() == able.settings()
    batch = collate_slices([ball_case(9.0)])
    np.testing.assert_allclose(again.eval().predict(batch)[0].sdf, able.predict(batch)[0].sdf, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"autoencoder_share": 1.0}, "autoencoder_share: expected a share"),
        ({"samples": 0}, "samples: expected at least 1"),
        ({"draws": 0}, "draws: expected at least 1"),
        ({"divergence": -1.0}, "divergence: expected 0 or more"),
        ({"sampler": "ddim"}, "sampler: expected one of euler, heun"),
        ({"times": "cosine"}, "times: expected one of uniform"),
        ({"shift": 0.0}, "shift: expected a positive"),
        ({"tau": 0.0}, "tau: expected a positive"),
    ],
)
def test_settings_that_can_t_be_are_refused(settings, fault):
    with pytest.raises(SettingError, match=fault):
        flow_task(**settings)


def test_another_network_and_a_missing_truth_are_refused():
    plain = {name: value for name, value in SMALL.items() if not name.startswith(("latent", "auto", "flow"))}
    with pytest.raises(SettingError, match="model: expected a ShapeFlow, got a ShapeNet"):
        ReconstructFlowTask(ShapeNet(**plain), edges=[48.0])
    with pytest.raises(DataError, match="no true shape"):
        flow_task().training_loss(collate_slices([ball_case().replace(sdf=None)]))

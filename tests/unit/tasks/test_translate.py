"""Translation as a task: what the network is given, what it learns, and what becomes of its answer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.context import context
from voxelry.data.sample import Sample
from voxelry.diffusion.inputs import fixed_noise
from voxelry.io import read_image
from voxelry.metrics.continuity import seam_ratio
from voxelry.models.unet.haar import HaarUNet
from voxelry.ops.tiles import tile_starts
from voxelry.tasks.translate import TranslatePrediction, TranslateTask
from voxelry.tasks.translate.calibration import SpreadCalibration
from voxelry.tasks.translate.predict import write_translation
from voxelry.tasks.translate.targets import RANGE, given, input_channels, reduced, withheld

OBLIQUE = np.array([[0.0, 0.3, 0.9, -7], [0.0, -0.9, 0.3, 4], [-2.5, 0.0, 0.0, 9], [0, 0, 0, 1]])


def network(ndim=2, channels=2, targets=1, *, zero=True):
    torch.manual_seed(1)
    return HaarUNet(
        ndim=ndim, in_channels=channels, out_channels=targets, width=8, multipliers=[1, 2], groups=4,
        block="pre_norm", attention="none", middle_attention="none", blocks_per_level=1, zero_head=zero,
    )  # fmt: skip


def batch(ndim=2, count=2, conditions=1, targets=1, shape=None, **fields):
    torch.manual_seed(0)
    shape = shape or (16, 20, 14)[:ndim]
    samples = [
        Sample(
            torch.rand(conditions, *shape),
            Space.from_spacing(shape, (2.0, 1.0, 0.5)[:ndim]),
            f"case_{number}",
            target=torch.rand(targets, *shape),
            levels=torch.tensor([[0.0, 10.0]] * conditions + [[-5.0, 5.0]] * targets),
            **fields,
        )
        for number in range(count)
    ]
    return collate(samples)


class Answers(nn.Module):
    """A network that answers a function of its input and writes down what it was given."""

    def __init__(self, answer, ndim=2):
        super().__init__()
        self.answer, self.ndim, self.seen = answer, ndim, []
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        self.seen.append((x, t))
        return self.answer(x, t) + self.weight


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("mode", ["bridge", "flow", "diffusion", "regression"])
def test_every_mode_trains_and_predicts(mode, ndim):
    task = TranslateTask(network(ndim), mode=mode, steps=2)
    data = batch(ndim)
    losses = task.training_loss(data)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    prediction = task.eval().predict(data)[0]
    assert prediction.translated.shape == data.target[0].shape
    assert (prediction.spread is not None) == (mode != "regression")
    assert (prediction.baseline is not None) == (mode != "regression")
    assert prediction.calls == (1 if mode == "regression" else 2)
    row = task.metrics([prediction], data)[0]
    assert np.isfinite(row["psnr"])
    assert task.summary([row])["psnr"] == row["psnr"]


def test_a_bridge_that_has_learned_nothing_answers_the_condition():
    data = batch()
    task = TranslateTask(network()).eval()
    for case, image in zip(task.predict(data), data.image, strict=True):
        torch.testing.assert_close(case.translated, image, atol=1e-6, rtol=0)
        torch.testing.assert_close(case.baseline, image, atol=1e-6, rtol=0)


def test_some_steps_of_training_restore_the_target():
    data = batch(count=4)
    data.image = 0.8 * data.target + 0.1
    task = TranslateTask(network(), noise_scale=0.1, steps=2)
    optimizer = torch.optim.Adam(task.parameters(), lr=5e-3)
    first = task.training_loss(data)
    for _ in range(60):
        losses = task.training_loss(data)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["loss_network"] < 0.3 * first["loss_network"]
    rows = task.eval().metrics(task.predict(data), data)
    assert all(row["psnr"] > row["input_psnr"] + 3 for row in rows)
    assert all(row["baseline_psnr"] > row["input_psnr"] + 3 for row in rows)


def test_the_baseline_begins_alike_and_learns_by_itself():
    task = TranslateTask(network(zero=False))
    assert all(torch.equal(a, b) for a, b in zip(task.network.parameters(), task.baseline.parameters(), strict=True))
    losses = task.training_loss(batch())
    assert losses["loss"].item() == pytest.approx((losses["loss_network"] + losses["loss_baseline"]).item())
    (gradient,) = torch.autograd.grad(losses["loss"], [task.baseline.head.weight], retain_graph=True)
    alone = TranslateTask(network(zero=False), mode="regression")
    (expected,) = torch.autograd.grad(alone.training_loss(batch())["loss"], [alone.network.head.weight])
    torch.testing.assert_close(gradient, expected)


def test_predictions_repeat_whatever_the_batch():
    task = TranslateTask(network(zero=False), mode="flow", steps=2).eval()
    both = task.predict(batch(), samples=3)
    alone = task.predict(collate([sample_of(batch(), 1)]), samples=3)[0]
    torch.testing.assert_close(both[1].translated, alone.translated, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1].spread, alone.spread, atol=1e-5, rtol=1e-5)
    assert both[0].calls == 6


def sample_of(data, index):
    return Sample(data.image[index], data.spaces[index], data.names[index], target=data.target[index])


def test_mean_and_spread_are_those_of_the_samples():
    task = TranslateTask(network(zero=False), mode="diffusion", steps=2, spread_samples=0).eval()
    data = batch(count=1)
    drawn = []
    known = given(data, 1, tells_place=False)

    def ask(x_t, clock):
        return known.start + task.network(torch.cat([known.image, x_t], dim=1), clock)

    for number in range(3):
        noise = fixed_noise([f"case_0/{number}"], known.start, seed=0)
        with torch.no_grad():
            drawn.append(RANGE.inverse(task.path.walk(ask, noise)))
    prediction = task.predict(data, samples=3)[0]
    torch.testing.assert_close(prediction.translated, torch.stack(drawn).mean(dim=0)[0])
    expected = torch.stack(drawn).std(dim=0)[0].clamp(min=1e-3)
    torch.testing.assert_close(prediction.spread, expected, atol=1e-5, rtol=1e-4)


def test_the_input_is_conditions_presence_place_and_the_image_on_its_way():
    seen = Answers(lambda x, t: torch.zeros_like(x[:, -1:]))
    task = TranslateTask(seen, conditions=2, context=True, steps=1, noise_scale=0.0, baseline=False, drop=0.5)
    data = batch(conditions=2, present=torch.tensor([True, False]))
    data.image[:, 1] = 0
    task.training_loss(data)
    x, t = seen.seen[0]
    assert x.shape[1] == input_channels(2, 1, 2, tells_place=True) == 2 + 2 + (2 + 2) + 1
    torch.testing.assert_close(x[:, :1], 2 * data.image[:, :1] - 1)
    assert torch.equal(x[:, 1:2], torch.zeros_like(x[:, 1:2]))
    assert torch.equal(x[:, 2], torch.ones_like(x[:, 2]))
    assert torch.equal(x[:, 3], torch.zeros_like(x[:, 3]))
    shown = torch.stack([2 * data.image[0, 0] - 1, torch.zeros(16, 20)])
    torch.testing.assert_close(x[0, 4:8], context(shown, (0, 0), (16, 20)))
    torch.testing.assert_close(x[:, -1:], 2 * data.image[:, :1] - 1)  # of the contrasts that there are
    assert t.tolist() == [1000.0, 1000.0]


def test_a_patch_is_told_where_it_lies():
    seen = Answers(lambda x, t: torch.zeros_like(x[:, -1:]))
    task = TranslateTask(seen, context=True, baseline=False)
    place = torch.cat([torch.rand(2, 16, 20) * 2 - 1, torch.rand(1, 16, 20)])
    task.training_loss(batch(context=place))
    x = seen.seen[0][0]
    torch.testing.assert_close(x[0, 1:3], place[:2])
    torch.testing.assert_close(x[0, 3], 2 * place[2] - 1)


def test_as_many_targets_as_conditions_begin_at_their_own():
    data = batch(conditions=2, targets=2, present=torch.tensor([True, False]))
    start = given(data, 2, tells_place=False).start
    torch.testing.assert_close(start[:, 0], 2 * data.image[:, 0] - 1)
    torch.testing.assert_close(start[:, 1], 2 * data.image[:, 0] - 1)
    whole = given(batch(conditions=3), 1, tells_place=False).start
    torch.testing.assert_close(whole[:, 0], 2 * batch(conditions=3).image.mean(dim=1) - 1)


def test_contrasts_are_withheld_but_never_all():
    present = torch.tensor([[True, True, False]]).expand(4000, -1)
    kept = withheld(present, 0.9)
    assert (kept.sum(dim=1) >= 1).all()
    assert not kept[:, 2].any()
    assert kept[:, 0].double().mean() == pytest.approx(0.55, abs=0.03)  # spared in half of the cases, else 1 in 10
    assert torch.equal(withheld(present, 0.0), present)
    with pytest.raises(DataError, match="case_0: none of the contrasts"):
        given(batch(conditions=2, present=torch.tensor([False, False])), 1, tells_place=False)


def test_growing_reduces_the_first_batches():
    seen = Answers(lambda x, t: torch.zeros_like(x[:, -1:]), ndim=3)
    task = TranslateTask(seen, growing=[[0.5, 1], [0.0, 4], [0.25, 2]], baseline=False)
    sizes = []
    for share in (0.0, 0.3, 0.6):
        task.on_progress(share)
        task.training_loss(batch(3, shape=(16, 20, 6)))
        sizes.append(tuple(seen.seen[-1][0].shape[2:]))
    assert sizes == [(4, 5, 6), (8, 10, 3), (16, 20, 6)]
    image = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(reduced(image, 4)[0, 0, 1, 0], image[0, 0, 4:, :4].mean())


@pytest.mark.parametrize("mode", ["bridge", "diffusion"])
def test_tiles_leave_no_seams(mode):
    shape, tile = (72, 60), 32
    data = batch(count=1, shape=shape)
    noisy = network(zero=False)
    nn.init.normal_(noisy.head.weight, std=0.05)
    whole = TranslateTask(noisy, mode=mode, steps=3, baseline=False, clip=False, spread_samples=0).eval()
    tiled = TranslateTask(copy.deepcopy(noisy), mode=mode, steps=3, tile_size=tile, baseline=False, clip=False,
                          spread_samples=0).eval()  # fmt: skip
    reference, result = (task.predict(data, samples=2)[0].translated[None] for task in (whole, tiled))
    borders = []
    for size in shape:
        starts = tile_starts(size, tile, 0.5)
        borders.append(sorted({*starts[1:], *(start + tile for start in starts[:-1])}))
    assert seam_ratio(result, borders, reference=reference) <= 1.02
    assert result.isfinite().all()
    assert not torch.equal(result, reference)


def test_a_volume_smaller_than_a_tile_is_taken_whole():
    data = batch(3, count=1)
    task = TranslateTask(network(3, zero=False), steps=1, spread_samples=0).eval()
    whole = task.predict(data)[0].translated
    task.tile_size = 64
    torch.testing.assert_close(task.predict(data)[0].translated, whole)


def test_tiles_are_told_their_places():
    seen = Answers(lambda x, t: torch.zeros_like(x[:, -1:]))
    task = TranslateTask(seen, context=True, tile_size=8, tile_overlap=0.0, steps=1, baseline=False, spread_samples=0)
    data = batch(count=1, shape=(16, 8))
    task.eval().predict(data)
    image = 2 * data.image[0] - 1
    for (x, _), start in zip(seen.seen, ((0, 0), (8, 0)), strict=True):
        torch.testing.assert_close(x[0, 1:4], context(image, start, (8, 8)))


def test_settings_make_the_same_task():
    task = TranslateTask(network(), mode="diffusion", objective="v", steps=3, conditions=1, growing=[(0.0, 2)])
    again = TranslateTask(network(), **task.settings())
    assert again.settings() == task.settings()
    assert again.path.settings() == task.path.settings()
    fewer = TranslateTask(network(), **{**TranslateTask(network(), steps=4).settings(), "steps": 2})
    assert fewer.path.calls == 2
    with pytest.raises(SettingError, match="trained at"):
        TranslateTask(network(), **{**TranslateTask(network(), steps=4).settings(), "steps": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "l3"}, "loss_type"),
        ({"drop": 1.0}, "drop"),
        ({"samples": 0}, "samples"),
        ({"growing": [[1.0, 2]]}, "growing"),
        ({"conditions": 2, "condition_names": ["t1"]}, "condition_names"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        TranslateTask(network(), **settings)


def test_requests_and_data_that_do_not_fit_are_refused():
    task = TranslateTask(network(), mode="regression")
    with pytest.raises(SettingError, match="samples"):
        task.predict(batch(), samples=2)
    with pytest.raises(DataError, match="case_0: 2 channels, expected 1"):
        task.predict(batch(conditions=2))
    blind = batch()
    blind.target = None
    with pytest.raises(DataError, match="case_0: no target"):
        task.training_loss(blind)


def test_physical_values_are_the_targets():
    data = batch(count=1)
    task = TranslateTask(network(), spread_samples=0).eval()
    prediction = task.predict(data)[0]
    torch.testing.assert_close(prediction.physical(), -5 + 10 * prediction.translated)
    # of a file nothing is known of the target: the training's levels, or the condition's own
    data.levels = data.levels[:, :1]
    data.target = None
    assert task.predict(data)[0].target_levels.tolist() == [[0.0, 10.0]]
    task.fit_baseline([sample_of_levels(low) for low in (-6.0, -4.0)])
    assert task.predict(data)[0].target_levels.tolist() == [[-5.0, 5.0]]


def sample_of_levels(low):
    image = torch.rand(1, 4, 4)
    return Sample(image, Space.from_spacing((4, 4)), "case", target=image,
                  levels=torch.tensor([[0.0, 10.0], [low, low + 10]]))  # fmt: skip


def test_the_calibrated_spread_keeps_its_promise(rng):
    space = Space.from_spacing((40, 50))

    def case(number):
        truth, spread = torch.zeros(1, 40, 50), torch.from_numpy(rng.uniform(0.02, 0.2, (1, 40, 50))).float()
        translated = truth + 3 * spread * torch.from_numpy(rng.standard_normal((1, 40, 50))).float()
        return TranslatePrediction(f"case_{number}", truth, translated, torch.zeros(2, 2), space, spread, truth)

    calibration = SpreadCalibration()
    cases = [case(number) for number in range(6)]
    assert calibration.coverage(cases[0])["coverage_90"] < 0.5
    calibration.fit(cases[:3])
    assert calibration.factor.item() == pytest.approx(3, rel=0.05)
    assert calibration.cases == 3
    for held_out in cases[3:]:
        sure = TranslatePrediction(**{**vars(held_out), "spread": calibration(held_out.spread)})
        assert calibration.coverage(sure)["coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert calibration.coverage(TranslatePrediction(**{**vars(cases[0]), "spread": None})) == {}


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".ome.tif", ".ome.zarr"])
def test_files_are_physical_and_lie_where_the_input_does(tmp_path, suffix):
    space = Space((5, 6, 7), OBLIQUE)
    turned = space.reorder((2, 0, 1), (True, False, True))
    values = torch.rand(1, *turned.shape)
    prediction = TranslatePrediction(
        "scan", values, values, torch.tensor([[0.0, 1.0], [-1000.0, 500.0]]), turned, spread=values / 10
    )
    paths = write_translation(prediction, tmp_path, suffix=suffix, space=space)
    assert [path.name for path in paths] == [f"scan{suffix}", f"scan_spread{suffix}"]
    image, spread = (read_image(path) for path in paths)
    assert image.space.is_close(space)
    back = values.flip(1, 3).permute(0, 2, 3, 1)
    np.testing.assert_allclose(image.array, -1000 + 1500 * back, atol=1e-2)
    np.testing.assert_allclose(spread.array, 150 * back, atol=1e-2)

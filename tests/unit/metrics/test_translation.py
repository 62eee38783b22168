import math

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.metrics.images import psnr
from voxelry.metrics.translation import summarise, translate_metrics

OBLIQUE = np.array([[0.0, 0.3, 0.9, -7], [0.0, -0.9, 0.3, 4], [-2.5, 0.0, 0.0, 9], [0, 0, 0, 1]])
SPACES = [
    pytest.param(Space((6, 14, 12), OBLIQUE), id="oblique volume"),
    pytest.param(Space.from_spacing((15, 13), (0.5, 0.25)), id="image"),
]
HU = torch.tensor([[-1024.0, 976.0]])


def pair(rng, space, channels=1):
    truth = torch.from_numpy(rng.random((channels, *space.shape)))
    return (truth + 0.05 * torch.from_numpy(rng.standard_normal(truth.shape))).clamp(0, 1), truth


@pytest.mark.parametrize("space", SPACES)
def test_errors_are_physical_and_relative_figures_are_not(rng, space):
    prediction, truth = pair(rng, space)
    relative = translate_metrics(prediction, truth, space=space)
    physical = translate_metrics(prediction, truth, levels=HU, space=space)
    in_units = ("mae", "rmse", "bias", "gradient_error_z", "gradient_error_y", "gradient_error_x")
    for name, value in relative.items():
        assert physical[name] == pytest.approx(value * (2000 if name in in_units else 1), rel=1e-9, abs=1e-9)
    assert ("gradient_error_z" in relative) == (space.ndim == 3)
    assert physical["mae"] == pytest.approx(2000 * (prediction - truth).abs().mean().item())
    assert physical["bias"] == pytest.approx(2000 * (prediction - truth).mean().item())


def test_one_declared_range_makes_scales_comparable(rng):
    space = Space.from_spacing((14, 12))
    prediction, truth = pair(rng, space)
    stretched = torch.tensor([[-1024.0, -24.0]])  # the same physical values, twice as large in relative ones
    here = translate_metrics(prediction, truth, levels=HU, data_range=(-1024, 3000), space=space)
    there = translate_metrics(2 * prediction, 2 * truth, levels=stretched, data_range=(-1024, 3000), space=space)
    assert here == pytest.approx(there)
    expected = psnr(2000 * prediction[None], 2000 * truth[None], data_range=4024.0).item()
    assert here["psnr"] == pytest.approx(expected)


def test_what_lies_outside_of_the_range_does_not_count():
    space = Space.from_spacing((9, 9))
    truth = torch.full((1, 9, 9), 0.9)
    assert translate_metrics(truth + 5, truth + 0.2, space=space)["psnr"] == math.inf
    assert translate_metrics(truth + 5, truth, space=space)["mae"] == pytest.approx(0.1)


def test_equal_images_are_perfect_and_their_figures_defined(rng):
    space = Space((6, 14, 12), OBLIQUE)
    truth = torch.from_numpy(rng.random((2, *space.shape)))
    levels = torch.tensor([[0.0, 10.0], [-5.0, 5.0]])
    scores = translate_metrics(truth, truth.clone(), levels=levels, space=space, mask=torch.zeros(space.shape))
    perfect = {"psnr": math.inf, "ssim": pytest.approx(1), "detail_ratio": 1.0}
    for name, value in scores.items():
        if name.endswith("_inside"):
            assert math.isnan(value)  # the mask is empty
        else:
            assert value == perfect.get(name, 0)


def test_a_mask_parts_inside_from_outside(rng):
    space = Space((6, 14, 12), OBLIQUE)
    prediction, truth = pair(rng, space)
    mask = torch.zeros(space.shape, dtype=torch.bool)
    mask[2:5, 3:9] = True
    prediction[:, ~mask] = truth[:, ~mask] + 0.5 * (0.5 - truth[:, ~mask])
    scores = translate_metrics(prediction, truth, levels=HU, space=space, mask=mask)
    error = 2000 * (prediction - truth).abs()[0]
    assert scores["mae_inside"] == pytest.approx(error[mask].mean().item())
    assert scores["mae_outside"] == pytest.approx(error[~mask].mean().item())
    assert scores["psnr_inside"] > scores["psnr"]
    whole = translate_metrics(prediction, truth, space=space, mask=torch.ones(space.shape))
    assert math.isnan(whole["mae_outside"])


def test_channels_have_their_own_levels_and_are_averaged(rng):
    space = Space.from_spacing((14, 12))
    prediction, truth = pair(rng, space, channels=2)
    levels = torch.tensor([[0.0, 1.0], [100.0, 300.0]])
    both = translate_metrics(prediction, truth, levels=levels, space=space)
    alone = [
        translate_metrics(prediction[i : i + 1], truth[i : i + 1], levels=levels[i : i + 1], space=space)
        for i in range(2)
    ]
    assert both == pytest.approx({name: (alone[0][name] + alone[1][name]) / 2 for name in both})


def test_figures_are_the_same_in_a_turned_array(rng):
    space = Space((6, 14, 12), OBLIQUE)
    prediction, truth = pair(rng, space)
    turned = space.reorder((2, 0, 1), (True, False, True))
    images = [image.permute(0, 3, 1, 2).flip(1, 3) for image in (prediction, truth)]
    here, there = translate_metrics(prediction, truth, space=space), translate_metrics(*images, space=turned)
    axes = {"gradient_error_z": "gradient_error_y", "gradient_error_y": "gradient_error_x"}
    axes["gradient_error_x"] = "gradient_error_z"
    assert {axes.get(name, name): value for name, value in here.items()} == pytest.approx(there)


def test_summaries_are_means_of_what_is_finite():
    rows = [
        {"name": "a", "psnr": 20.0, "ssim": 0.8, "mae_inside": math.nan},
        {"name": "b", "psnr": 30.0, "ssim": 0.9, "mae_inside": 2.0},
        {"name": "c", "psnr": math.inf, "ssim": 1.0, "mae_inside": 4.0},
    ]
    summary = summarise(rows)
    assert (summary["psnr"], summary["ssim"], summary["mae_inside"]) == (25.0, pytest.approx(0.9), 3.0)
    assert summary["exact"] == 1
    assert 20 <= summary["psnr_low"] < 25 < summary["psnr_high"] <= 30
    assert "name" not in summary
    assert summarise([]) == {}
    assert math.isnan(summarise([{"psnr": math.nan}])["psnr"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"levels": torch.zeros(2, 2)}, "levels"),
        ({"levels": torch.ones(1, 2)}, "data_range"),
        ({"data_range": (1.0, 0.0)}, "data_range"),
        ({"data_range": (1.0,)}, "data_range"),
        ({"space": Space.from_spacing((4, 5))}, "prediction"),
        ({"mask": torch.ones(3, 3)}, "mask"),
    ],
)
def test_what_does_not_fit_is_refused(options, word):
    image = torch.rand(1, 4, 4)
    with pytest.raises(SettingError, match=word):
        translate_metrics(image, image, **{"space": Space.from_spacing((4, 4)), **options})

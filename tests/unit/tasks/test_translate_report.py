import re

import numpy as np
import pytest
import torch

from voxelry.core.space import Space
from voxelry.metrics.translation import summarise, translate_metrics
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.translate.predict import TranslatePrediction
from voxelry.tasks.translate.report import add_calls, add_results, case_figure
from voxelry.tasks.translate.scores import duel, score, untranslated
from voxelry.viz.report import Report

OBLIQUE = np.array([[0.0, 0.3, 0.9, -7], [0.0, -0.9, 0.3, 4], [-2.5, 0.0, 0.0, 9], [0, 0, 0, 1]])


class Scores:
    """As much of a task as the report needs."""

    def summary(self, rows):
        return summarise(rows)


def cases(rng, *, space, conditions=1, spread=True, baseline=True):
    """A few cases of growing damage, in HU."""
    predictions, rows = [], []
    for number in range(3):
        truth = torch.from_numpy(rng.random((1, *space.shape))).float()
        noise = torch.from_numpy(rng.standard_normal((3, 1, *space.shape))).float()
        prediction = TranslatePrediction(
            name=f"case_{number}",
            image=(truth + 0.3 * noise[0]).repeat(conditions, *[1] * space.ndim),
            translated=truth + 0.02 * (1 + number) * noise[1],
            levels=torch.tensor([[-1000.0, 500.0]]).expand(conditions + 1, 2),
            space=space,
            spread=torch.full_like(truth, 0.05) if spread else None,
            target=truth,
            baseline=truth + 0.05 * (1 + number) * noise[2] if baseline else None,
            calls=2,
            seconds=0.5,
        )
        predictions.append(prediction)
        rows.append(score(prediction))
    return predictions, rows


def spaces():
    return [
        pytest.param(Space((6, 16, 14), OBLIQUE), id="oblique volume"),
        pytest.param(Space.from_spacing((24, 30), 0.002), id="image in micrometres"),
    ]


@pytest.mark.parametrize("space", spaces())
def test_the_report_says_who_wins_and_begins_with_the_worst(rng, space):
    predictions, rows = cases(rng, space=space)
    calls = [summarise(rows) | {"sampler": "euler", "calls": count, "seconds": 0.3 * count} for count in (4, 1, 2)]
    page = add_results(Report("Translation"), Scores(), Evaluation(rows, {}, predictions), calls=calls).html()
    text = re.sub(r"base64,[^\"]*", "", page)
    for heading in ("Translated images", "Against regression", "Over the number of calls", "Spread", "Cases"):
        assert heading in text
    assert "The translation is better in PSNR, SSIM," in text
    assert "The regression is better" not in text
    covered = 100 * np.mean([row["coverage_90"] for row in rows])
    assert f"Of the true voxels {covered:.1f} % lie in the interval that promises 90 %." in text
    assert text.index("case_2: ") < text.index("case_1: ") < text.index("case_0: ")
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_without_baseline_and_spread_there_is_nothing_to_compare(rng):
    predictions, rows = cases(rng, space=Space.from_spacing((12, 14)), spread=False, baseline=False)
    page = add_results(Report("Translation"), Scores(), Evaluation(rows, {}, predictions)).html()
    assert "Translated images" in page
    for heading in ("Against regression", "Over the number of calls", "Spread"):
        assert heading not in page


def test_a_row_holds_the_figures_of_all_methods(rng):
    (prediction, *_), (row, *_) = cases(rng, space=Space((6, 16, 14), OBLIQUE))
    figures = translate_metrics(
        prediction.baseline, prediction.target, levels=prediction.target_levels, space=prediction.space
    )
    assert {name: row[f"baseline_{name}"] for name in figures} == figures
    assert row["mae"] == pytest.approx(1500 * 0.02 * np.sqrt(2 / np.pi), rel=0.05)
    assert row["coverage_90"] > 0.99  # a spread of 0.05 around errors of 0.02
    assert row["psnr"] > row["input_psnr"]


def test_absent_contrasts_are_no_guess_of_the_target(rng):
    (prediction, *_), _ = cases(rng, space=Space.from_spacing((12, 14)), conditions=3)
    prediction.image[1] += 0.2
    prediction.image[2] = 0
    torch.testing.assert_close(untranslated(prediction), prediction.image[:2].mean(dim=0, keepdim=True))


LEVEL = dict.fromkeys(("ssim", "mae", "gmsd", "spectral_distance"), 0.5)
LEVEL |= {f"baseline_{name}": value for name, value in LEVEL.items()}


def test_a_duel_is_decided_by_the_interval_of_paired_differences():
    better = [LEVEL | {"psnr": 20.0 + i, "baseline_psnr": 19.5 + i} for i in range(9)]
    psnr, *others = duel(better)
    assert psnr["winner"] == "translation"
    assert (psnr["difference"], psnr["low"], psnr["high"]) == (0.5, 0.5, 0.5)
    assert (psnr["cases"], psnr["better"]) == (9, 9)
    assert {one["winner"] for one in others} == {"undecided"}
    worse = [row | {"gmsd": 0.1 + 0.001 * i, "baseline_gmsd": 0.05} for i, row in enumerate(better)]
    assert {one["figure"]: one["winner"] for one in duel(worse)}["gmsd"] == "regression"


def test_cases_that_are_exact_are_left_out_of_a_duel():
    exact = {"psnr": float("inf"), "baseline_psnr": float("inf")}
    rows = [LEVEL | {"psnr": 30.0, "baseline_psnr": 29.0}, LEVEL | exact]
    assert (duel(rows)[0]["cases"], duel(rows)[0]["better"]) == (1, 1)
    assert np.isnan(duel(rows[1:])[0]["difference"])


def test_the_table_over_calls_begins_with_regression_and_is_in_order(rng):
    _, rows = cases(rng, space=Space.from_spacing((12, 14)))
    calls = [summarise(rows) | {"sampler": "euler", "calls": count} for count in (4, 1)]
    page = add_calls(Report("Translation"), calls).html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert [cell for cell in cells if cell in ("regression", "euler")] == ["regression", "euler", "euler"]
    assert cells[cells.index("euler") + 1] == "1"
    alone = [{name: value for name, value in row.items() if not name.startswith("baseline_")} for row in calls]
    assert "regression" in page
    assert "regression" not in add_calls(Report("Translation"), alone).html(), "of a network that wasn't trained"


@pytest.mark.parametrize("space", spaces())
def test_a_case_shows_what_there_is_in_physical_units(rng, space):
    (prediction, *_), _ = cases(rng, space=space, conditions=3)
    prediction.image[2].zero_()  # a contrast that is absent
    fig = case_figure(prediction)
    fig.canvas.draw()
    titles = [axes.get_title() for axes in fig.axes if axes.get_title()]
    assert titles == ["input 1", "input 2", "translated", "regression", "truth", "translated\n− truth", "spread"]
    pictures = [axes.images[0] for axes in fig.axes if axes.images]
    planes = 3 if space.ndim == 3 else 1
    error, spread = pictures[5 * planes], pictures[6 * planes]
    low, high = error.get_clim()
    size = float(np.percentile(1500 * (prediction.translated - prediction.target).abs().double().numpy(), 99.5))
    assert (low, high) == pytest.approx((-size, size))
    assert spread.get_clim() == pytest.approx((0.0, 75.0))
    assert len({picture.get_clim() for picture in pictures[: 5 * planes]}) == 1


def test_a_case_without_a_truth_shows_no_error(rng):
    space = Space.from_spacing((12, 14))
    (prediction, *_), _ = cases(rng, space=space)
    alone = TranslatePrediction("case", prediction.image, prediction.translated, prediction.levels, space)
    fig = case_figure(alone)
    assert [axes.get_title() for axes in fig.axes if axes.get_title()] == ["input", "translated"]

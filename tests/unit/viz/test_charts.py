import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.viz import figures


def line(fig, label):
    (found,) = [one for one in fig.axes[0].lines if str(one.get_label()).startswith(label)]
    return found


def test_curves_draw_what_they_are_given():
    fig = figures.curves({"training": ([0, 1, 2], [3.0, np.nan, 1.0]), "one": ([1], [2.0])}, ylabel="loss", log=True)
    fig.canvas.draw()
    np.testing.assert_array_equal(line(fig, "training").get_ydata(), [3.0, np.nan, 1.0])
    assert line(fig, "one").get_marker() == "o"
    assert fig.axes[0].get_yscale() == "log"
    with pytest.raises(SettingError, match="training: expected x and y of one length, got 2 and 3"):
        figures.curves({"training": ([0, 1], [1, 2, 3])})


def test_a_logarithmic_curve_leaves_out_what_is_not_positive():
    fig = figures.curves({"loss": ([0, 1, 2], [1.0, 0.0, -1.0])}, log=True)
    fig.canvas.draw()
    assert np.isfinite(line(fig, "loss").get_ydata()).tolist() == [True, False, False]


def test_small_multiples_have_a_chart_for_each_quantity():
    rows = [{"calls": count, "psnr": 20 + count, "gmsd": 1 / count} for count in (1, 2, 4)]
    fig = figures.small_multiples(
        {"ddim": rows, "heun": rows[1:]},
        x="calls",
        ys={"psnr": "PSNR (dB)", "gmsd": "GMSD"},
        levels={"regression": {"psnr": 23.5, "gmsd": 0.4}},
    )
    fig.canvas.draw()
    first, second = fig.axes
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["PSNR (dB)", "GMSD"]
    np.testing.assert_allclose(line(fig, "heun").get_xydata(), [[1, 22], [2, 24]])
    assert [label.get_text() for label in second.get_xticklabels()] == ["1", "2", "4"]
    assert second.lines[-1].get_ydata()[0] == 0.4
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["ddim", "heun", "regression"]


def test_the_cumulative_curve_is_the_share_within_each_distance():
    errors = np.array([[1.0, 3.0], [2.0, np.nan]])
    fig = figures.cumulative_error({"ours": errors, "none": [np.nan]}, limit=5.0)
    fig.canvas.draw()
    steps = line(fig, "ours")
    x, y = np.asarray(steps.get_xdata()), np.asarray(steps.get_ydata())
    for threshold, share in [(0.5, 0), (1.0, 100 / 3), (2.5, 200 / 3), (3.0, 100), (5.0, 100)]:
        assert y[np.searchsorted(x, threshold, side="right") - 1] == pytest.approx(share)
    assert steps.get_label() == "ours (median 2.00 mm)"


def test_calibration_is_in_per_cent_and_checks_lengths():
    fig = figures.calibration([0.5, 0.9], {"raw": [0.4, 0.8], "scaled": [0.5, 0.9]})
    fig.canvas.draw()
    np.testing.assert_allclose(line(fig, "raw").get_xydata(), [[50, 40], [90, 80]])
    with pytest.raises(SettingError, match="observed: expected 2 values"):
        figures.calibration([0.5, 0.9], [0.5])


def test_few_shot_shows_means_intervals_and_every_run():
    runs = np.array([[4.0, 2.0], [5.0, np.nan], [6.0, 4.0]])
    fig = figures.few_shot([1, 10], {"scratch": runs}, baseline={"mean position": 2.06})
    fig.canvas.draw()
    axes = fig.axes[0]
    np.testing.assert_allclose(line(fig, "scratch").get_ydata(), [5.0, 3.0])
    dots = np.concatenate([one.get_ydata() for one in axes.lines if one.get_marker() == "o"])
    assert sorted(dots) == [2, 4, 4, 5, 6]
    band = axes.collections[0].get_paths()[0].vertices
    at_first = band[np.isclose(band[:, 0], 0), 1]
    assert 4.0 <= at_first.min() < 5.0 < at_first.max() <= 6.0
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10"]
    with pytest.raises(SettingError, match=r"scratch: expected shape \(seeds, 3\)"):
        figures.few_shot([1, 5, 10], {"scratch": runs})


def test_boxes_say_how_many_cases_they_stand_for():
    errors = np.array([[1.0, np.nan], [2.0, 3.0], [9.0, np.nan]])
    fig = figures.box_by_landmark(errors, ["apex", "base"])
    fig.canvas.draw()
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["apex  (n = 3)", "base  (n = 1)"]
    with pytest.raises(SettingError, match=r"errors: expected shape \(cases, 1\)"):
        figures.box_by_landmark(errors, ["apex"])

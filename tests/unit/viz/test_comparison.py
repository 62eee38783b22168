import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.comparison import Panel, comparison

OBLIQUE = np.array([[0.0, 0.3, 0.9, -7], [0.0, -0.9, 0.3, 4], [-2.5, 0.0, 0.0, 9], [0, 0, 0, 1]])
VOLUME = Space((5, 9, 8), OBLIQUE)


def pictures(fig):
    """The picture of each axes that shows one plane, without scales of colours."""
    return [axes.images[0] for axes in fig.axes if axes.images]


@pytest.mark.parametrize(("space", "planes"), [(VOLUME, 3), (Space.from_spacing((7, 6), 0.001), 1)])
def test_one_column_per_panel_and_one_row_per_plane(rng, space, planes):
    panels = [Panel(name, rng.random(space.shape)) for name in ("input", "translated", "truth")]
    fig = comparison(panels, space)
    fig.canvas.draw()
    assert len(pictures(fig)) == 3 * planes
    titled = [axes for axes in fig.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == ["input", "translated", "truth"]
    lefts = [axes.get_position().x0 for axes in titled]
    assert lefts == sorted(lefts)
    assert all(axes.get_position().x0 >= 0 and axes.get_position().x1 <= 1 for axes in fig.axes)


def test_panels_of_a_kind_share_their_scale(rng):
    image = rng.random(VOLUME.shape)
    small, large = 0.1 * (image - 0.5), 2 * (image - 0.5)
    fig = comparison(
        [Panel("a", image), Panel("b", image + 1), Panel("small", small, "error"), Panel("large", large, "error")],
        VOLUME,
        unit="HU",
    )
    scales = [picture.get_clim() for picture in pictures(fig)]
    assert scales[0] == scales[3] == pytest.approx(np.percentile([image, image + 1], (0.5, 99.5)))
    end = np.percentile(np.abs([small, large]), 99.5)
    assert scales[6] == scales[9] == pytest.approx((-end, end))
    assert [axes.get_xlabel() for axes in fig.axes if axes.get_xlabel()] == ["HU", "HU"]


def test_pixels_are_those_of_the_volume(rng):
    image = rng.random((1, *VOLUME.shape))
    space = Space.from_spacing(VOLUME.shape)
    fig = comparison([Panel("image", image)], space, at=(1, 2, 3), anatomical=False)
    shown = [np.asarray(picture.get_array()) for picture in pictures(fig)]
    for expected in (image[0, 1], image[0, :, 2], image[0, :, :, 3]):
        assert any(part.shape == expected.shape and np.array_equal(part, expected) for part in shown)


def test_a_window_is_kept_and_no_error_has_a_scale():
    flat = np.zeros(VOLUME.shape)
    fig = comparison([Panel("grey", flat), Panel("error", flat, "error")], VOLUME, window=(-1.0, 3.0))
    fig.canvas.draw()
    assert [picture.get_clim() for picture in pictures(fig)][::3] == [(-1, 3), (-1, 1)]


@pytest.mark.parametrize(
    ("panels", "fault"),
    [
        ([], "panels: expected at least one"),
        ([Panel("a", np.zeros(VOLUME.shape), "heat")], "kind: expected one of grey, error, spread, got 'heat'"),
        ([Panel("two\nlines", np.zeros((3, 3, 3)))], "two lines: expected spatial shape"),
    ],
)
def test_what_does_not_fit_is_refused(panels, fault):
    with pytest.raises(SettingError, match=fault):
        comparison(panels, VOLUME)

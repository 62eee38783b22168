import sys

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz import figures


def space_of(ndim):
    """Anisotropic, mirrored, away from the origin."""
    affine = np.zeros((4, ndim + 1))
    for axis, (world, step) in enumerate([(2, 2.0), (1, -0.5), (0, 1.5)][:ndim]):
        affine[world, axis] = step
    affine[:, ndim] = (10, -20, 30, 1)
    return Space((8, 20, 12)[:ndim], affine)


def texts(fig):
    from matplotlib.text import Text

    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def render(fig):
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())


@pytest.mark.parametrize("ndim", [2, 3])
def test_errors_are_listed_in_world_millimetres(ndim, rng):
    space = space_of(ndim)
    truth = np.array([[3.0, 9.0, 6.0], [4.0, 12.0, 5.0], [2.0, 4.0, 4.0]])[:, :ndim]
    predicted = truth + np.array([[1.0, 0, 0], [0, 3.0, 0], [0, 0, 0]])[:, :ndim]
    predicted[2] = np.nan
    points = figures.PointPairs(space, truth=torch.tensor(truth), predicted=predicted, names=["apex", "base", "tip"])
    fig = figures.orthogonal(torch.rand(2, *space.shape), points)
    render(fig)
    shown = texts(fig)
    assert {"apex", "base", "tip"} <= set(shown)
    assert "2.00 mm" in shown  # one plane of 2 mm
    assert "1.50 mm" in shown  # three rows of 0.5 mm
    assert "true only" in shown
    assert "1.75 mm" in shown  # their mean


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_are_drawn_where_the_planes_project_them(ndim):
    from voxelry.viz.planes import lay_out, planes_of

    space = space_of(ndim)
    truth = np.array([[3.0, 9.0, 6.0][:ndim]])
    fig = figures.orthogonal(np.zeros(space.shape), figures.PointPairs(space, truth=truth))
    planes = lay_out(planes_of(space), gap=0.14 * max(space.extent))
    rings = [line.get_xydata()[0] for line in fig.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(rings, [plane.project(truth)[0] for plane in planes])


def test_voxels_keep_their_proportions():
    space = space_of(3)
    fig = figures.orthogonal(np.zeros(space.shape), figures.PointPairs(space))
    axes = fig.axes[0]
    assert axes.get_aspect() == 1.0
    axial = axes.images[0]
    left, right, bottom, top = axial.get_extent()
    assert axial.get_array().shape == (20, 12)
    assert (abs(right - left), abs(bottom - top)) == pytest.approx((18.0, 10.0))


def test_labels_and_uncertainty_are_drawn_over_the_image():
    space = space_of(3)
    image = np.zeros(space.shape)
    labels = np.zeros(space.shape, dtype=int)
    labels[2:6, 5:15, 3:9] = 1
    point = np.array([[4.0, 10.0, 6.0]])
    nothing = figures.PointPairs(space)
    bare = render(figures.orthogonal(image, nothing, at=point[0]))
    overlaid = render(figures.orthogonal(image, nothing, at=point[0], labels=torch.tensor(labels)))
    assert (bare != overlaid).any()
    fig = figures.orthogonal(image, figures.PointPairs(space, predicted=point, uncertainty_mm=[3.0]))
    assert sorted({patch.get_radius() for patch in fig.axes[0].patches}) == [3.0]


def test_points_that_are_all_absent_leave_the_planes():
    space = space_of(3)
    fig = figures.orthogonal(np.zeros(space.shape), figures.PointPairs(space, truth=np.full((2, 3), np.nan)))
    render(fig)
    assert len(fig.axes[0].images) == 3


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"truth": np.zeros((2, 2))}, r"truth: expected shape \(2, 3\)"),
        ({"truth": np.zeros((2, 3)), "predicted": np.zeros((3, 3))}, r"predicted: expected shape \(2, 3\)"),
        ({"truth": np.zeros((2, 3)), "names": ["a"]}, "expected 2, one per landmark, got 1"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arguments, fault):
    space = space_of(3)
    with pytest.raises(SettingError, match=fault):
        figures.PointPairs(space, **arguments)
    with pytest.raises(SettingError, match="labels: expected spatial shape"):
        figures.orthogonal(np.zeros(space.shape), figures.PointPairs(space), labels=np.zeros((2, 2, 2)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sheet_shows_the_middle_planes_of_every_image_with_one_window(ndim):
    images = [torch.full((1, *(4, 6, 5)[:ndim]), float(value)) for value in range(5)]
    fig = figures.sheet(images, columns=2, titles=list("abcde"), title="Samples")
    render(fig)
    assert len(fig.axes) == 5
    planes = {2: 1, 3: 3}[ndim]
    assert [len(axes.images) for axes in fig.axes] == [planes] * 5
    windows = {image.get_clim() for axes in fig.axes for image in axes.images}
    assert windows == {(0.0, 4.0)}
    assert [float(axes.images[0].get_array().max()) for axes in fig.axes] == [0, 1, 2, 3, 4]
    left = [round(axes.get_position().x0, 4) for axes in fig.axes]
    assert left[0] == left[2] == left[4] < left[1] == left[3]


def test_a_sheet_wants_images_and_a_title_for_each():
    with pytest.raises(SettingError, match="at least one"):
        figures.sheet([])
    with pytest.raises(SettingError, match="titles: expected 1"):
        figures.sheet([np.zeros((1, 4, 4))], titles=["a", "b"])
    with pytest.raises(SettingError, match=r"images\[1\]: expected spatial shape"):
        figures.sheet([np.zeros((1, 4, 4)), np.zeros((1, 4, 5))])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_process_has_a_column_per_time_and_a_row_per_plane(ndim):
    steps = [np.random.default_rng(t).normal(size=(1, *(4, 6, 5)[:ndim])) for t in range(3)]
    fig = figures.process(steps, [0, 250, "noise"], space=Space.from_spacing((4, 6, 5)[:ndim]))
    render(fig)
    assert len(fig.axes) == 3 * {2: 1, 3: 3}[ndim]
    assert [text for text in texts(fig) if text.startswith(("t =", "noise"))] == ["t = 0", "t = 250", "noise"]
    for axes in fig.axes:
        box = axes.get_position()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= 1
        assert box.y1 <= 1
    with pytest.raises(SettingError, match="one per step, got 1 for 3"):
        figures.process(steps, [0])


def test_figures_leave_no_trace_in_pyplot():
    figures.sheet([np.zeros((1, 4, 4))])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []

import numpy as np
import pytest
from matplotlib.colors import to_hex

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz import instances as pictures
from voxelry.viz.planes import planes_of
from voxelry.viz.style import new_figure


def scene(shape):
    """Truth: 1 (found as 7) and 2 (missed). Predicted: 7 and 9 (invented)."""
    truth, found = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    truth[(slice(2, 6),) * len(shape)], truth[(slice(6, 9),) * len(shape)] = 1, 2
    found[(slice(2, 6),) * len(shape)] = 7
    found[(slice(4, 6),) * (len(shape) - 1) + (slice(8, 10),)] = 9
    return truth, found


def painted(axes):
    """Colours of the overlays of one axes; the grey planes have no channels."""
    return {to_hex(colour) for image in axes.images for colour in _opaque(np.asarray(image.get_array()))}


def _opaque(array):
    if array.ndim != 3:
        return []
    return np.unique(array[array[..., 3] == 1][:, :3], axis=0)


@pytest.mark.parametrize("shape", [(12, 14), (10, 12, 14)])
def test_partners_share_a_colour_and_errors_have_their_own(shape):
    space = Space.from_spacing(shape, (3.0, 1.0, 2.0)[: len(shape)])
    truth, found = scene(shape)
    image = np.zeros((2, *shape), dtype=np.float32)
    fig = pictures.instance_planes(
        image, space, truth=truth, predicted=found, matches={7: 1}, at=(5,) * len(shape), title="Worst"
    )
    fig.canvas.draw()
    left, right = fig.axes
    assert left.get_title(loc="left") == "Truth: 2, 1 missed"
    assert right.get_title(loc="left") == "Predicted: 2, 1 without a partner"
    error = pictures.ERROR.lower()
    (shared,) = painted(left) & painted(right) - {error}
    assert painted(left) | painted(right) == {shared, error}
    assert len(left.images) == 2 * len(planes_of(space))


def test_one_side_alone_and_no_objects():
    space = Space.from_spacing((10, 12, 14))
    truth, _ = scene(space.shape)
    fig = pictures.instance_planes(np.zeros(space.shape), space, truth=truth)
    fig.canvas.draw()
    assert [axes.get_title(loc="left") for axes in fig.axes] == ["Truth: 2"]
    assert pictures.ERROR.lower() not in painted(fig.axes[0])
    fig = pictures.instance_planes(np.zeros(space.shape), space, truth=truth * 0, predicted=truth * 0, matches={})
    fig.canvas.draw()
    assert [painted(axes) for axes in fig.axes] == [set(), set()]


def test_outlines_are_as_wide_across_thick_voxels():
    """Voxels of 4 mm by 1 mm: an object of one voxel has an outline of the same width in mm on all sides."""
    space = Space.from_spacing((6, 24), (4.0, 1.0))
    labels = np.zeros(space.shape, dtype=np.int64)
    labels[1:5, 4:20] = 3
    fig = new_figure(4, 4)
    axes = fig.add_subplot()
    (plane,) = planes_of(space)
    pictures.draw_instances(axes, plane, labels, (0, 0), {3: "#ff0000"})
    (image,) = axes.images
    opaque = np.asarray(image.get_array())[..., 3] == 1
    height, width = opaque.shape
    rows, columns = opaque[:, width // 2], opaque[height // 2]
    assert rows.sum() / height * space.extent[0] == pytest.approx(columns.sum() / width * space.extent[1], rel=0.1)
    assert 0 < rows.sum() < 0.1 * height


def test_bad_labels_are_named():
    space = Space.from_spacing((10, 12))
    with pytest.raises(SettingError, match="truth, predicted: expected at least one"):
        pictures.instance_planes(np.zeros((10, 12)), space)
    with pytest.raises(SettingError, match=r"truth: expected integer ids of shape \(10, 12\), got float64"):
        pictures.instance_planes(np.zeros((10, 12)), space, truth=np.zeros((10, 12)))
    with pytest.raises(SettingError, match="predicted: expected integer ids"):
        pictures.instance_planes(np.zeros((10, 12)), space, predicted=np.zeros((12, 10), dtype=int))


def test_curves_are_in_per_cent():
    fig = pictures.precision_recall({"masks": ([0.25, 0.5], [1.0, 0.75]), "none": ([], [])})
    fig.canvas.draw()
    steps = fig.axes[0].lines[0]
    np.testing.assert_allclose(steps.get_xdata(), [0, 25, 50])
    np.testing.assert_allclose(steps.get_ydata(), [100, 100, 75])


def test_froc_marks_the_sensitivity_at_the_rates():
    fig = pictures.froc({"masks": ([0, 0, 0.5, 3], [0, 0.5, 0.6, 0.9])}, rates=(0.125, 1, 8))
    fig.canvas.draw()
    marks = fig.axes[0].lines[1]
    np.testing.assert_allclose(marks.get_xdata(), [0.125, 1, 8])
    np.testing.assert_allclose(marks.get_ydata(), [50, 60, 90])
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["1/8", "1", "8"]


def test_sizes_are_grouped_evenly():
    sizes, iou = [10.0, 20.0, 30.0, 1000.0], [0.0, 0.6, 0.9, 0.4]
    fig = pictures.size_errors(sizes, iou, unit="µm³", bins=2)
    fig.canvas.draw()
    (share,) = [line for line in fig.axes[0].lines if line.get_label() == "share found"]
    np.testing.assert_allclose(share.get_xdata(), [np.sqrt(200), np.sqrt(30_000)])
    np.testing.assert_allclose(share.get_ydata(), [0.5, 0.5])
    (missed,) = [line for line in fig.axes[0].lines if line.get_label() == "missed"]
    np.testing.assert_allclose(missed.get_xdata(), [10, 1000])
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == [
        "10",
        "20",
        "50",
        "100",
        "200",
        "500",
        "1000",
    ]
    pictures.size_errors([], []).canvas.draw()
    with pytest.raises(SettingError, match="sizes, iou: expected one of each per object, got 1 and 2"):
        pictures.size_errors([1.0], [0.5, 0.5])

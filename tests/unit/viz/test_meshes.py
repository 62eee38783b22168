"""Pictures of surfaces: the right side, the right place, the right colour."""

import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.surface import Mesh, empty_mesh, extract_surface
from voxelry.viz.meshes import surfaces
from voxelry.viz.raster import VIEWS, render_mesh

SPACE = Space.from_spacing((30, 30, 30), 1.0, (100.0, -60.0, 20.0))
MIDDLE = SPACE.to_world(np.array([14.5, 14.5, 14.5]))


def ball(radius, centre=(0.0, 0.0, 0.0)):
    index = np.stack(np.meshgrid(*map(np.arange, SPACE.shape), indexing="ij"), axis=-1).astype(float)
    return extract_surface(np.linalg.norm(SPACE.to_world(index) - MIDDLE - centre, axis=-1) - radius, SPACE)


def picture(mesh, view, **look):
    return render_mesh(
        mesh, view, **{"centre": MIDDLE, "size": (60, 60), "step": 0.5, "colours": (0.8, 0.8, 0.8), **look}
    )


def texts(fig):
    from matplotlib.text import Text

    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def drawn(fig):
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_right_handed_and_named_after_their_side(view):
    axes = VIEWS[view].axes
    assert np.linalg.det(axes) == pytest.approx(1)
    towards = {"left": (0, -1), "right": (0, 1), "posterior": (1, -1), "anterior": (1, 1), "inferior": (2, -1)}
    axis, sign = towards.get(view, (2, 1))
    assert axes[2, axis] == sign
    letters = np.array(["LR", "PA", "IS"])
    for row, (low, high) in ((0, VIEWS[view].edges[:2]), (1, VIEWS[view].edges[:1:-1])):
        world = int(np.abs(axes[row]).argmax())
        assert letters[world] == (low + high if axes[row, world] > 0 else high + low)


def test_a_ball_covers_its_disc():
    seen = picture(ball(9.0), "left")
    assert seen.shape == (60, 60, 4)
    assert seen[..., 3].sum() * 0.25 == pytest.approx(np.pi * 81, rel=0.01)
    assert seen.min() >= 0
    assert seen.max() <= 1
    np.testing.assert_array_equal(seen[0, 0], 0)
    assert seen[20, 25, 0] > seen[45, 35, 0]  # the light comes from above


@pytest.mark.parametrize(
    ("view", "quarter"),
    [
        ("anterior", (0, 0)), ("posterior", (0, 1)), ("left", (0, 0)),
        ("right", (0, 1)), ("superior", (0, 1)), ("inferior", (0, 0)),
    ],
)  # fmt: skip
def test_what_lies_right_anterior_superior_is_shown_there(view, quarter):
    alpha = picture(ball(3.0, centre=(6.0, 6.0, 6.0)), view)[..., 3]
    quarters = alpha.reshape(2, 30, 2, 30).sum(axis=(1, 3))
    assert quarters[quarter] == alpha.sum() > 0


def test_what_is_nearer_hides_what_is_behind():
    near, far = ball(4.0, centre=(0.0, 7.0, 0.0)), ball(4.0, centre=(0.0, -7.0, 0.0))
    both = Mesh(
        np.concatenate([near.vertices, far.vertices]), np.concatenate([near.faces, far.faces + len(near.vertices)])
    )
    paint = np.zeros((len(both.vertices), 3))
    paint[: len(near.vertices), 0] = paint[len(near.vertices) :, 2] = 0.8
    for view, front, back in (("anterior", 0, 2), ("posterior", 2, 0)):
        middle = picture(both, view, colours=paint)[25:35, 25:35]
        assert middle[..., front].min() > 0.3
        assert middle[..., back].max() < 0.2


def test_the_slice_is_marked_where_it_cuts():
    plane = Space((30, 30), np.delete(SPACE.crop((18.5, 0, 0), SPACE.shape).affine, 0, axis=1))
    difference = np.abs(picture(ball(9.0), "left") - picture(ball(9.0), "left", planes=[plane])).sum(axis=(1, 2))
    rows = np.flatnonzero(difference)
    assert abs(rows.mean() - (29.5 - 4 / 0.5)) < 1
    assert len(rows) <= 4


def test_prediction_beside_truth():
    prediction = ball(9.0).with_values(error_mm=ball(9.0).vertices[:, 2] - MIDDLE[2])
    fig = surfaces(prediction, ball(8.0), values="error_mm", title="case_01", planes=[])
    image = drawn(fig)
    assert {"true", "predicted", "error mm", "case_01", "anterior", "left", "superior", "mm", "5 mm"} <= set(texts(fig))
    red, blue = image[..., 0].astype(int), image[..., 2].astype(int)
    assert (red - blue > 80).sum() > 500
    assert (blue - red > 80).sum() > 500


def test_numbers_of_one_sign_start_at_zero():
    mesh = ball(6.0)
    fig = surfaces(mesh.with_values(spread_mm=np.linspace(1, 3, len(mesh.vertices))), values="spread_mm", limit=4.0)
    bar = next(axes for axes in fig.axes if axes.get_title(loc="left") == "mm")
    assert bar.get_ylim() == (0.0, 4.0)


def test_an_empty_prediction_is_said_to_be_empty():
    fig = surfaces(empty_mesh(), ball(5.0), views=["inferior", "right"])
    drawn(fig)
    assert texts(fig).count("empty") == 2


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: surfaces(ball(3.0), views=["front"]), "views"),
        (lambda: surfaces(ball(3.0), values="error_mm"), "values"),
        (lambda: surfaces(empty_mesh()), "prediction"),
        (lambda: picture(ball(3.0), "front"), "view"),
    ],
)
def test_what_cannot_be_is_named(call, names):
    with pytest.raises(SettingError, match=names):
        call()

"""Chamfer distance by hand, against every pair, and its gradient."""

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.ops.chamfer import chamfer, nearest, zero_crossings


def test_by_hand():
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    others = torch.tensor([[0.0, 4.0, 0.0]])
    # there: 4 and 5; back: 4
    assert chamfer(points, others).item() == pytest.approx((4.5 + 4) / 2)


def test_it_is_the_definition_however_it_is_cut():
    points, others = torch.randn(50, 3, dtype=torch.float64), torch.randn(37, 3, dtype=torch.float64)
    distances = torch.cdist(points, others)
    expected = (distances.min(1).values.mean() + distances.min(0).values.mean()) / 2
    for chunk in (1, 7, 1000):
        assert_close(chamfer(points, others, chunk=chunk), expected)
    assert_close(chamfer(others, points), expected)


def test_sets_side_by_side():
    points, others = torch.randn(3, 20, 3), torch.randn(3, 30, 3)
    assert_close(chamfer(points, others)[1], chamfer(points[1], others[1]))


def test_small_distances_far_from_the_origin():
    points = torch.rand(40, 3) + 500
    assert_close(chamfer(points, points + 0.001).item(), 0.001 * 3**0.5, rtol=0.05, atol=0)


def test_the_gradient_is_that_of_finite_differences():
    points = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    others = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(chamfer, (points, others))


def test_points_on_each_other_do_not_push():
    points = torch.randn(5, 3, requires_grad=True)
    chamfer(points, points.detach().clone()).backward()
    assert_close(points.grad, torch.zeros(5, 3))


def test_half_precision_is_not_enough_for_millimetres():
    points = torch.rand(10, 3).half()
    assert chamfer(points, points).dtype == torch.float32


@pytest.mark.parametrize(
    "shapes", [((0, 3), (4, 3)), ((4, 3), (0, 3)), ((4, 3), (4, 2)), ((2, 4, 3), (3, 4, 3)), ((4, 3), (1, 4, 3))]
)
def test_what_has_no_distance_is_refused(shapes):
    with pytest.raises(SettingError, match="chamfer"):
        chamfer(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_nearest_names_the_partner():
    assert nearest(torch.tensor([[0.0], [9.0]]), torch.tensor([[8.0], [1.0]]), chunk=1).tolist() == [1, 0]


@pytest.mark.parametrize("ndim", [2, 3])
def test_crossings_of_a_ball_lie_on_it(ndim):
    axes = torch.meshgrid(*[torch.arange(15.0)] * ndim, indexing="ij")
    centre = torch.full((ndim,), 6.8)
    field = torch.linalg.vector_norm(torch.stack(axes, dim=-1) - centre, dim=-1) - 4.3
    found = zero_crossings(field)
    assert len(found) > 20
    assert_close(torch.linalg.vector_norm(found - centre, dim=-1), torch.full((len(found),), 4.3), atol=0.05, rtol=0)


def test_crossings_follow_the_values():
    field = torch.tensor([[-1.0, 3.0]], requires_grad=True)
    found = zero_crossings(field)
    assert_close(found.detach(), torch.tensor([[0.0, 0.25]]))
    found[0, 1].backward()
    # d/da a / (a - b) = -b / (a - b)^2
    assert_close(field.grad, torch.tensor([[-3.0 / 16, -1.0 / 16]]))


def test_a_field_of_one_sign_has_none():
    assert zero_crossings(torch.ones(4, 4, 4)).shape == (0, 3)


def test_descent_grows_a_ball_to_the_right_size():
    axes = torch.stack(torch.meshgrid(*[torch.arange(11.0)] * 3, indexing="ij"), dim=-1)
    radius = torch.tensor(2.5, requires_grad=True)
    target = 5 + 4.0 * torch.nn.functional.normalize(torch.randn(400, 3), dim=1)
    optimiser = torch.optim.SGD([radius], lr=0.5)
    for _ in range(30):
        optimiser.zero_grad()
        chamfer(zero_crossings(torch.linalg.vector_norm(axes - 5, dim=-1) - radius), target).backward()
        optimiser.step()
    assert radius.item() == pytest.approx(4.0, abs=0.25)

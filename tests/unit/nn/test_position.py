"""Learned positions, against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from voxelry.nn.position import AbsolutePositions, RelativePositions, attend, relative_rows


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_absolute_positions_of_their_own_grid_are_the_table(grid):
    positions = AbsolutePositions(6, grid)
    assert torch.equal(positions(grid), positions.table)
    assert 0.01 < positions.table.std() < 0.03
    larger = positions([2 * size for size in grid])
    assert larger.shape == (1, *[2 * size for size in grid], 6)
    larger.sum().backward()
    assert (positions.table.grad > 0).all()
    torch.nn.init.constant_(positions.table, 0.5)
    torch.testing.assert_close(positions([size + 1 for size in grid]), torch.full((1, *[n + 1 for n in grid], 6), 0.5))


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (3, 4, 5)])
def test_terms_are_biases_between_every_two_places(size):
    count = int(torch.tensor(size).prod())
    positions = RelativePositions(5, size)
    for table in positions.tables:
        torch.nn.init.normal_(table)
    q, k, v = (torch.randn(2, 3, count, 5, requires_grad=True) for _ in range(3))
    found = attend(q, k, v, positions(q, size))
    places = torch.cartesian_prod(*[torch.arange(length) for length in size])
    bias = 0
    for axis, table in enumerate(positions.tables):
        rows = table[places[:, None, axis] - places[None, :, axis] + size[axis] - 1]
        bias = bias + torch.einsum("bhic,ijc->bhij", q, rows)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    towards = torch.randn_like(found)
    inputs = (q, k, v, *positions.tables)
    for one, other in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_without_terms_it_is_plain_attention():
    q, k, v = torch.randn(3, 2, 3, 7, 5)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_rows_by_distance():
    table = torch.arange(5.0)[:, None]  # distances -2 to 2
    assert relative_rows(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    # a larger grid reads between the rows: 5 rows to 9, centres (i + 0.5) * 5 / 9 - 0.5
    wide = relative_rows(table, 5)[..., 0]
    assert wide[0, 0] == pytest.approx(2.0)
    assert wide[1, 0] == pytest.approx(2.0 + 5 / 9)
    assert wide[4, 0] == pytest.approx(4.0)

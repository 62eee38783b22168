"""How fine an answer is to be, from pairs of grids in any orientation."""

import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.target_grid import TargetGrid


def tilted(shape, spacing, *, order=(0, 1, 2), flips=(False, False, False)):
    """A grid turned by 20 degrees about z, its axes in another order or reversed."""
    turn = np.eye(4)
    angle = np.deg2rad(20)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    space = Space.from_spacing(shape, spacing, origin=(5, -7, 11))
    return Space(space.shape, turn @ space.affine).reorder(order, flips)


def test_slices_are_as_many_times_finer_as_they_were_in_the_pairs():
    thin = tilted((40, 20, 20), (1.0, 0.8, 0.8))
    grid = TargetGrid.between([(thin.resize((8, 20, 20)), thin), (thin.resize((8, 20, 20)), thin)])
    assert grid is not None
    assert grid.ratio == pytest.approx((5, 1, 1))
    for order, flips in (((0, 1, 2), (False,) * 3), ((2, 0, 1), (True, False, True))):
        thick = tilted((6, 16, 12), (5.0, 0.7, 0.7), order=order, flips=flips)
        found = grid.of(thick)
        assert sorted(found.shape) == [12, 16, 30]
        assert found.shape[order.index(0)] == 30
        edges = [np.array([-0.5] * 3), np.array(thick.shape) - 0.5]
        same = [np.array([-0.5] * 3), np.array(found.shape) - 0.5]
        for one, other in zip(edges, same, strict=True):  # the same field of view, edge to edge
            np.testing.assert_allclose(thick.to_world(one), found.to_world(other), atol=1e-9)


def test_where_ratios_differ_the_targets_spacing_counts():
    thin = tilted((40, 20, 20), (1.0, 0.8, 0.8))
    grid = TargetGrid.between([(thin.resize((8, 20, 20)), thin), (thin.resize((10, 20, 20)), thin)])
    assert grid is not None
    assert grid.ratio[0] is None
    assert grid.of(tilted((7, 16, 12), (6.0, 0.7, 0.7))).shape == (42, 16, 12)
    assert TargetGrid(**grid.settings()) == grid


def test_equally_fine_grids_say_nothing_and_nonsense_is_refused():
    thin = tilted((40, 20, 20), (1.0, 0.8, 0.8))
    assert TargetGrid.between([(thin, thin)]) is None
    with pytest.raises(SettingError, match="at least one pair"):
        TargetGrid.between([])
    with pytest.raises(SettingError, match="target_grid: expected positive numbers"):
        TargetGrid((0, 1, 1), (1, 1, 1))

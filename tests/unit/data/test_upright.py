"""The world turned until a volume's axes lie along it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from voxelry.core.space import Space
from voxelry.data.slices.augment import move_space
from voxelry.data.slices.upright import upright


def placed(axes, angles=(0, 0, 0), shear=0.0):
    """A grid of 3 x 1 x 0.8 mm whose array axes run along signed world axes, in a patient turned by degrees."""
    matrix = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(axes):
        matrix[axis, column] = sign
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ matrix
    matrix[:, 1] += shear * matrix[:, 0]
    affine = np.eye(4)
    affine[:3, :3] = matrix * (3.0, 1.0, 0.8)
    affine[:3, 3] = (40.0, -300.0, 1000.0)
    return Space((8, 20, 30), affine)


SAR, PSL = ((2, 1), (1, 1), (0, 1)), ((1, -1), (2, 1), (0, -1))


@pytest.mark.parametrize("axes", [SAR, PSL, ((0, -1), (2, -1), (1, 1)), ((2, -1), (1, 1), (0, 1))])
def test_a_turned_volume_stands_as_it_did_before(axes):
    straight, turned = placed(axes), placed(axes, (15, -10, 20))
    motion = upright(turned)
    np.testing.assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(motion) == pytest.approx(1.0)  # nobody is mirrored, however the file is
    np.testing.assert_allclose(move_space(turned, motion).affine[:3, :3], straight.affine[:3, :3], atol=1e-9)
    np.testing.assert_array_equal(upright(straight), np.eye(4))


def test_a_sheared_volume_is_turned_as_near_as_a_rotation_brings_it():
    motion = upright(placed(SAR, (15, -10, 20), shear=0.1))
    assert np.linalg.det(motion) == pytest.approx(1.0)
    found = move_space(placed(SAR, (15, -10, 20), shear=0.1), motion).directions
    assert np.abs(found - placed(SAR).directions).max() == pytest.approx(0.05, abs=0.01)  # half of it on either axis

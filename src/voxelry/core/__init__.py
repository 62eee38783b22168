"""The ground everything stands on: physical space, rank, errors, optional imports."""

from voxelry.core import errors as errors

"""Random changes of training samples, in physical units."""

from voxelry.data.augment.augment import Augment
from voxelry.data.augment.intensity import IntensityAugment
from voxelry.data.augment.spatial import SpatialAugment, find_swap_pairs

__all__ = ["Augment", "IntensityAugment", "SpatialAugment", "find_swap_pairs"]

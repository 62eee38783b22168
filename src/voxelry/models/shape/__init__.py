"""Whole shapes from single slices."""

from voxelry.models.shape.autoencoder import ShapeAutoencoder
from voxelry.models.shape.flow_net import ShapeFlow
from voxelry.models.shape.shape_net import ShapeNet, ShapeOutput
from voxelry.ops.prompt import Prompt

__all__ = ["Prompt", "ShapeAutoencoder", "ShapeFlow", "ShapeNet", "ShapeOutput"]

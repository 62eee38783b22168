"""Whole shapes from single slices."""

from voxelry.models.shape.prompt import Prompt, plane_in_frame
from voxelry.models.shape.shape_net import ShapeNet, ShapeOutput

__all__ = ["Prompt", "ShapeNet", "ShapeOutput", "plane_in_frame"]

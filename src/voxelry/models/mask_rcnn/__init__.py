"""Mask R-CNN in any rank, its parts by file."""

from voxelry.models.mask_rcnn.detections import Detections
from voxelry.models.mask_rcnn.mask_rcnn import MaskRCNN

__all__ = ["Detections", "MaskRCNN"]

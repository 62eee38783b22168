"""Backbones: an image to feature maps of several resolutions."""

from voxelry.backbones.base import Backbone
from voxelry.backbones.build import build_backbone
from voxelry.backbones.fpn import FPN
from voxelry.backbones.hiera import Hiera
from voxelry.backbones.resnet import ResNet
from voxelry.backbones.vit import ViT
from voxelry.backbones.vitdet import ViTDet

__all__ = ["FPN", "Backbone", "Hiera", "ResNet", "ViT", "ViTDet", "build_backbone"]

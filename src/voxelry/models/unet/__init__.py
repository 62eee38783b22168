"""U-Nets: the plain one, and those that work on folded or wavelet voxels."""

from voxelry.models.unet.unet import UNet

__all__ = ["UNet"]

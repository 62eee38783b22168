"""Files in and out: everything that isn't ours becomes ours here, and goes back."""

from voxelry.io.images.image import (
    IMAGE_OPTIONS,
    IMAGE_SUFFIXES,
    Image,
    ImageFile,
    is_image,
    open_image,
    read_image,
    write_image,
)
from voxelry.io.points.landmarks import POINT_OPTIONS, LandmarkSet, read_landmarks, write_landmarks

__all__ = [
    "IMAGE_OPTIONS",
    "IMAGE_SUFFIXES",
    "POINT_OPTIONS",
    "Image",
    "ImageFile",
    "LandmarkSet",
    "is_image",
    "open_image",
    "read_image",
    "read_landmarks",
    "write_image",
    "write_landmarks",
]

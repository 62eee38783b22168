"""Files in and out: everything that isn't ours becomes ours here, and goes back."""

from voxelry.io.images.image import (
    IMAGE_OPTIONS,
    READERS,
    WRITERS,
    Image,
    ImageFile,
    image_formats,
    is_image,
    open_image,
    read_image,
    write_image,
)
from voxelry.io.points.landmarks import POINT_FORMATS, POINT_OPTIONS, LandmarkSet, read_landmarks, write_landmarks

__all__ = [
    "IMAGE_OPTIONS",
    "POINT_FORMATS",
    "POINT_OPTIONS",
    "READERS",
    "WRITERS",
    "Image",
    "ImageFile",
    "LandmarkSet",
    "image_formats",
    "is_image",
    "open_image",
    "read_image",
    "read_landmarks",
    "write_image",
    "write_landmarks",
]

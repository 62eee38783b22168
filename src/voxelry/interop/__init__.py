"""Other projects' weights and configurations, read into ours."""

from voxelry.interop.weights.reference import from_reference, infer_case
from voxelry.models.tensor_file import load_reference_file

__all__ = ["from_reference", "infer_case", "load_reference_file"]

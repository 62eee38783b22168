"""What a prediction may be asked for; this file imports nothing heavy, for `voxelry predict --help` reads it."""

from voxelry.core.option import Option

OPTIONS = (Option("unit", str, "of the answer, ml or mm3"),)

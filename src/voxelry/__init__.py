"""voxelry: deep learning on biomedical images and volumes, in patient millimetres.

`voxelry.train`, `predict` and `evaluate` are the commands; `voxelry.load(bundle)` gives a trained model;
`voxelry.read_image` and `read_landmarks` read files. Everything is imported when it is first used.
"""

from voxelry.core.lazy import lazily

__version__ = "0.1.0"

_PLACES = {
    # what the command line does
    "train": "voxelry.engine.train_command",
    "predict": "voxelry.engine.commands",
    "evaluate": "voxelry.engine.commands",
    # a trained model
    "load": "voxelry.bundle.model",
    "Model": "voxelry.bundle.model",
    # files
    "open_image": "voxelry.io",
    "read_image": "voxelry.io",
    "write_image": "voxelry.io",
    "read_landmarks": "voxelry.io",
    "write_landmarks": "voxelry.io",
    # records
    "Image": "voxelry.io",
    "Instances": "voxelry.ops.instances",
    "LandmarkSet": "voxelry.io",
    "Sample": "voxelry.data.sample",
    "Space": "voxelry.core.space",
    # what is done to images before a network sees them
    "Augment": "voxelry.data.augment",
    "Preprocess": "voxelry.data.preprocess",
    "errors": "voxelry.core",
}

__all__ = ["__version__", *_PLACES]

__getattr__ = lazily(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted(__all__)

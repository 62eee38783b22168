"""Instances into files that open over the image they were found in.

- a label volume: OME-Zarr 0.5 labels with scores, classes and boxes as properties, or NIfTI, TIFF, MetaImage;
- `instances.csv`: one row per instance, in mm and for microscopes in µm;
- `instances.json`: every mask by itself as run lengths, overlaps included.

All have the same ids: the k-th instance is k + 1.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.io.images.image import open_image, write_image
from voxelry.io.images.zarr_labels import BLOCK, write_labels
from voxelry.ops.instances import Instances, paint_blocks
from voxelry.ops.rle import decode_rle, encode_rle
from voxelry.tasks.segment.predict import InstancePrediction

__all__ = ["read_masks", "write_instances", "write_label_volume", "write_masks", "write_table"]


def write_instances(
    prediction: InstancePrediction,
    folder: str | Path,
    *,
    format: str = ".nii.gz",
    space: Space | None = None,
    image: str | Path | None = None,
    inside: bool = False,
    class_names: Mapping[int, str] | None = None,
) -> list[Path]:
    """Write all three for one image: `NAME` + format, `NAME.instances.csv`, `NAME.instances.json`.

    They hold the same instances, those of which the label volume shows a voxel at least, with the same ids.

    Args:
        folder: made if it isn't there.
        format: suffix of the label volume; `.zarr` for OME-Zarr labels.
        space: grid of the image as it was read, if the prediction was made on another one.
        image: the zarr image that labels belong to; for `.zarr` only. OME-Zarr's levels are taken over.
        inside: write OME-Zarr labels into that image, at `labels/instances`, instead of the folder.
        class_names: class to a name for the tables.

    Returns:
        The three paths, the label volume first.

    Raises:
        FileError: a format that can't be written, or the disk refuses.
    """
    folder = as_path(folder)
    placed = (prediction if space is None else prediction.on(space)).visible()
    path = folder / f"{prediction.name}.{format.lstrip('.')}"
    if inside:
        if image is None:
            raise FileError(folder, "labels can only be written into an OME-Zarr image", "leave inside=False")
        path = as_path(image) / "labels" / "instances"
    elif image is not None and open_image(image).format != "OME-Zarr":
        image = None  # a plain zarr array has no levels to take over
    return [
        write_label_volume(path, placed, image=image, class_names=class_names),
        write_table(folder / f"{prediction.name}.instances.csv", placed, class_names=class_names),
        write_masks(folder / f"{prediction.name}.instances.json", placed, class_names=class_names),
    ]


def write_label_volume(
    path: str | Path,
    prediction: InstancePrediction,
    *,
    image: str | Path | None = None,
    class_names: Mapping[int, str] | None = None,
) -> Path:
    """The label volume on the prediction's grid; OME-Zarr for `.zarr` and for `IMAGE.zarr/labels/NAME`.

    OME-Zarr is painted and written block by block and never held in memory.

    Raises:
        FileError: a suffix that can't be written, an image that doesn't fit, or the disk refuses.
    """
    path = as_path(path)
    dtype = np.uint16 if len(prediction) <= np.iinfo(np.uint16).max else np.uint32
    if path.suffix != ".zarr" and path.parent.name != "labels":
        # ImageJ reads 32 bits as floats
        ids = np.asarray(prediction.label_volume).astype(np.uint16 if dtype is np.uint16 else np.int32)
        return write_image(path, ids[None], prediction.space)
    shape = prediction.space.shape
    names = ("id", "score", "class", "voxels")
    rows = prediction.table(class_names=class_names)
    boxes = prediction.boxes.tolist()
    return write_labels(
        path,
        paint_blocks(prediction.instances, shape, (BLOCK,) * len(shape)),
        prediction.space,
        image=image,
        properties=[
            {
                key: value
                for key, value in row.items()
                if key in names[1:] or key.startswith(("centroid", "volume", "area"))
            }
            | {"box": [round(edge, 3) for edge in box]}
            for row, box in zip(rows, boxes, strict=True)
        ],
        dtype=dtype,
    )


def write_table(
    path: str | Path,
    prediction: InstancePrediction,
    *,
    class_names: Mapping[int, str] | None = None,
    ids: Sequence[int] | None = None,
) -> Path:
    """`prediction.table()` as CSV; without instances the header alone.

    Args:
        ids: of the instances, where they are not 1, 2, 3, ...

    Raises:
        FileError: the disk refuses.
    """
    path = as_path(path)
    rows = prediction.table(class_names=class_names)
    for row, number in zip(rows, ids or (), strict=ids is not None):
        row["id"] = number
    with replacing(path) as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(prediction.columns())
        for row in rows:
            writer.writerow([f"{value:.7g}" if isinstance(value, float) else value for value in row.values()])
    return path


def write_masks(
    path: str | Path,
    prediction: InstancePrediction,
    *,
    class_names: Mapping[int, str] | None = None,
    ids: Sequence[int] | None = None,
) -> Path:
    """Every mask as run lengths over the whole image (see `ops.rle`), with its score, class and box, as JSON.

    `affine` maps the array index to world RAS+ mm; boxes are index coordinates, all lows then all highs.

    Args:
        ids: of the instances, where they are not 1, 2, 3, ...

    Raises:
        FileError: the disk refuses.
    """
    path = as_path(path)
    names = class_names or {}
    head: dict[str, Any] = {
        "format": "voxelry instances",
        "name": prediction.name,
        "shape": list(prediction.space.shape),
        "affine": prediction.space.affine.tolist(),
    }
    with replacing(path) as place, place.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "instances": [')
        for k, (window, mask) in enumerate(prediction.crops):  # one at a time: together they may not fit into memory
            number = int(prediction.classes[k])
            entry = {
                "id": k + 1 if ids is None else ids[k],
                "score": float(f"{prediction.scores[k]:.9g}"),
                "class": number,
                **({"class_name": names[number]} if number in names else {}),
                "box": prediction.boxes[k].tolist(),
                "rle": encode_rle(mask, window, prediction.space.shape),
            }
            file.write(("," if k else "") + "\n" + json.dumps(entry))
        file.write("\n]}\n")
    return path


def read_masks(path: str | Path) -> InstancePrediction:
    """The prediction that `write_masks` wrote.

    Raises:
        FileError: no such file, or not of that format.
    """
    path = as_path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        space = Space(tuple(document["shape"]), np.array(document["affine"], dtype=np.float64))
        entries = document["instances"]
        instances = Instances(
            np.array([entry["box"] for entry in entries], dtype=np.float32).reshape(-1, 2 * space.ndim),
            np.array([entry["score"] for entry in entries], dtype=np.float32),
            np.array([entry["class"] for entry in entries], dtype=np.int64),
            [decode_rle(entry["rle"]) for entry in entries],
        )
        return InstancePrediction.from_instances(str(document["name"]), space, instances)
    except OSError as error:
        raise FileError(path, f"can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(path, f"expected a file of voxelry instances ({error!r})") from error

"""Hostile files: small valid ones whose headers say something absurd, and files that pretend to be others.

Each maker writes what it makes below a folder and answers an `Attempt`: how voxelry reads it, and, where there is one,
how a second reader does, whose pixels are compared.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (3, 4, 5)
WORDS = (0, 1, -1, 2, 3, 7, 127, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, 10**12)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 0.5, 1e-9, 3.4e38)
TEXTS = (
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e999",
    "9" * 400,
    "a\nb",
    "\x1b[2J\x1b]0;x\x07",
    "../../secret.bin",
    "\u202e",
    "%s%n",
    "!!python/object/apply:os.system [true]",
    "[" * 200,
    "{}",
    "null",
    "1 2",
    "(1,2,3)",
    "\x00",
    "LOCAL",
    "LIST",
)


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


@dataclass
class Attempt:
    """What is tried with an input: `read` is voxelry's, `judge` another reader's, both give pixels or nothing."""

    path: Path
    read: Callable[[], Any]
    judge: Callable[[], Any] | None = None


@dataclass
class Place:
    """Where inputs lie: `folder` is theirs, `secret` a file outside of it, `trace` what nothing may make."""

    folder: Path
    secret: Path
    trace: Path


def number(dice: random.Random) -> int:
    return dice.choice(WORDS) if dice.random() < 0.7 else dice.randint(-(2**34), 2**34)


def pixels(dice: random.Random, dtype: str = "<i2") -> np.ndarray:
    return np.frombuffer(dice.randbytes(240), np.uint8)[: 60 * 2].view("<i2").reshape(SHAPE).astype(dtype)


def image(path: Path, **options: Any) -> Callable[[], np.ndarray]:
    from voxelry.io import read_image

    return lambda: read_image(path, **options).array


def nifti(dice: random.Random, place: Place) -> Attempt:
    import nibabel

    made = nibabel.Nifti1Image(pixels(dice).T, np.diag([1.0, 2.0, 3.0, 1.0]))
    header = bytearray(made.to_bytes()[:352])
    for _ in range(dice.randint(1, 3)):
        kind = dice.choice("hhhfffb")
        at = dice.choice(
            {
                "h": [40 + 2 * dice.randint(0, 7), 70, 72, 252, 254, 68],
                "b": [123, 344, 345, 346, 0],
                "f": [76 + 4 * dice.randint(0, 7), 108, 112, 116, 256 + 4 * dice.randint(0, 17)],
            }[kind]
        )
        value = dice.choice(REALS) if kind == "f" else max(-32768, min(32767, number(dice)))
        struct.pack_into(f"<{kind}", header, at, value % 127 if kind == "b" else value)
    whole = bytes(header) + made.to_bytes()[352:]
    path = place.folder / dice.choice(["a.nii", "a.nii.gz"])
    path.write_bytes(gzip.compress(whole, 1) if path.suffix == ".gz" else whole)

    def judge() -> np.ndarray | None:
        found = nibabel.load(path)
        if found.dataobj.slope not in (1.0,) or found.ndim != 3 or min(found.shape) < 2 or np.prod(found.shape) > 1e6:
            return None
        return np.asarray(found.dataobj).T[None]

    return Attempt(path, image(path), judge)


def metaimage(dice: random.Random, place: Place) -> Attempt:
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    for _ in range(dice.randint(1, 2)):
        name = dice.choice([*fields, "HeaderSize", "ElementNumberOfChannels", "CompressedDataSize", "ElementSize"])
        some = " ".join(str(dice.choice([number(dice), dice.choice(REALS)])) for _ in range(dice.randint(1, 4)))
        outside = str(place.secret) if name == "ElementDataFile" else "7"
        fields[name] = dice.choice([dice.choice(TEXTS), some, outside])
    last = fields.pop("ElementDataFile")
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()) + f"ElementDataFile = {last}\n"
    path = place.folder / "a.mha"
    path.write_bytes(header.encode("utf-8", "replace") + pixels(dice).tobytes())
    return Attempt(path, image(path))


def nrrd(dice: random.Random, place: Place) -> Attempt:
    fields = {
        "type": "short",
        "dimension": "3",
        "sizes": "5 4 3",
        "encoding": "raw",
        "endian": "little",
        "space": "left-posterior-superior",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)",
        "space origin": "(0,0,0)",
    }
    for _ in range(dice.randint(1, 2)):
        name = dice.choice([*fields, "data file", "line skip", "byte skip", "kinds", "block size", "space units"])
        some = " ".join(str(number(dice)) for _ in range(dice.randint(1, 4)))
        fields[name] = dice.choice([dice.choice(TEXTS), some, str(place.secret)])
    path = place.folder / "a.nrrd"
    header = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    path.write_bytes(header.encode("utf-8", "replace") + pixels(dice).tobytes())

    def judge() -> np.ndarray | None:
        import nrrd as other

        found, said = other.read(str(path))
        return found.T[None] if found.shape == SHAPE[::-1] and "kinds" not in said else None

    return Attempt(path, image(path), judge)


def array(dice: random.Random, place: Place) -> Attempt:
    shape = [dice.choice([3, 4, 5, abs(number(dice))]) for _ in range(dice.randint(1, 5))]
    descr = dice.choice(["<i2", "|O", ">f8", "<c8", "|V4", "<U9", "|b1", "<f2", "M8[ns]", "junk", "<i2"])
    said = {"descr": descr, "fortran_order": dice.random() < 0.3, "shape": tuple(shape)}
    text = dice.choice([repr(said), repr(said), repr(said)[:-3], "__import__('os').mkdir('x')", "(" * 300]).encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + pixels(dice).tobytes()
    if dice.random() < 0.3:
        content = pickle.dumps(Bomb(place.trace))
    path = place.folder / dice.choice(["a.npy", "a.npz"])
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            name = dice.choice(["a.npy", "../a.npy", "/a.npy", "a\x1b.npy"])
            file.writestr(name, content + bytes(dice.choice([0] * 49 + [1 << 24])))  # deflating it takes 60 ms
    else:
        path.write_bytes(content)

    def judge() -> np.ndarray | None:
        found = np.load(path, allow_pickle=False)
        return found[None] if path.suffix == ".npy" and found.ndim == 3 and min(found.shape) > 1 else None

    return Attempt(path, image(path), judge)


def tiff(dice: random.Random, place: Place) -> Attempt:
    import tifffile

    path = place.folder / "a.tif"
    ome = dice.random() < 0.4
    tifffile.imwrite(
        path, pixels(dice, "<u2"), metadata={"axes": "ZYX"}, ome=ome, imagej=not ome and dice.random() < 0.5
    )
    content = bytearray(path.read_bytes())
    if ome and dice.random() < 0.7:
        name = dice.choice([b"SizeX", b"SizeZ", b"Type", b"DimensionOrder", b"FirstZ", b"PhysicalSizeX", b"PlaneCount"])
        at = content.find(name + b'="')
        if at > 0:
            stop = content.find(b'"', at + len(name) + 2)
            room = stop - at - len(name) - 2
            content[at + len(name) + 2 : stop] = (
                dice.choice([*TEXTS, "65535"]).encode("utf-8", "replace")[:room].ljust(room)
            )
    else:
        start = struct.unpack("<I", content[4:8])[0]
        entries = struct.unpack("<H", content[start : start + 2])[0]
        for _ in range(dice.randint(1, 2)):
            at = start + 2 + 12 * dice.randrange(max(1, entries))
            field, form = dice.choice([(0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<I"), (8, "<I")])
            limit = 2 ** (8 * struct.calcsize(form))
            struct.pack_into(form, content, at + field, number(dice) % limit)
        if dice.random() < 0.2:  # the pages begin again
            struct.pack_into("<I", content, start + 2 + 12 * entries, start)
    path.write_bytes(content)

    def judge() -> np.ndarray | None:
        found = tifffile.imread(path)
        return found[None] if found.shape == SHAPE else None

    return Attempt(path, image(path), judge)


def dicom(dice: random.Random, place: Place) -> Attempt:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, RLELossless

    odd = {
        "Rows": lambda: number(dice) % 65536,
        "Columns": lambda: number(dice) % 65536,
        "BitsAllocated": lambda: dice.choice([1, 8, 12, 16, 32, 64, 0]),
        "SamplesPerPixel": lambda: number(dice) % 65536,
        "PixelSpacing": lambda: [dice.choice(["0", "-1", "1e30", "1"]), "1"],
        "NumberOfFrames": lambda: str(number(dice)),
        "ImageOrientationPatient": lambda: [dice.choice(["0", "1", "1e9", "-1"]) for _ in range(6)],
        "ImagePositionPatient": lambda: [dice.choice(["0", "1e30", "-5", "2"]) for _ in range(3)],
        "RescaleSlope": lambda: dice.choice(["0", "1e38", "-1"]),
        "PhotometricInterpretation": lambda: "RGB",
        "SeriesInstanceUID": lambda: f"1.2.{dice.randint(1, 9)}",
        "PixelData": lambda: dice.randbytes(dice.randint(0, 90)),
        "PixelRepresentation": lambda: dice.choice([0, 1, 7]),
        "WindowWidth": lambda: "0",
    }
    folder = place.folder / "series"
    folder.mkdir()
    for plane, part in enumerate(pixels(dice)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = dice.choice([ExplicitVRLittleEndian] * 8 + [JPEG2000Lossless, RLELossless])
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, f"1.2.3.{plane + 1}"
        data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = MRImageStorage, f"1.2.3.{plane + 1}", "1.2.3"
        data.Modality, data.InstanceNumber, data.SamplesPerPixel = "MR", plane + 1, 1
        data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "MONOCHROME2", 16, 16, 15
        data.PixelRepresentation, (data.Rows, data.Columns) = 1, part.shape
        data.PixelSpacing, data.ImageOrientationPatient = ["1", "1"], ["1", "0", "0", "0", "1", "0"]
        data.ImagePositionPatient, data.PixelData = ["0", "0", str(plane)], part.tobytes()
        if plane == 0 or dice.random() < 0.3:
            name = dice.choice(list(odd))
            setattr(data, name, odd[name]())
        data.save_as(folder / f"{plane}.dcm", implicit_vr=False, little_endian=True, enforce_file_format=False)
    return Attempt(folder, image(folder))


def zarr(dice: random.Random, place: Place) -> Attempt:
    from voxelry.core.space import Space
    from voxelry.io import write_image

    path = write_image(place.folder / "a.zarr", pixels(dice)[None], Space.from_spacing(SHAPE))
    target = dice.choice([path / "zarr.json", path / "0" / "zarr.json"])
    document = json.loads(target.read_text())
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(document)
    for _ in range(dice.randint(1, 2)):
        holder, key = dice.choice(spots)
        holder[key] = dice.choice(
            [
                number(dice),
                dice.choice(REALS),
                dice.choice(TEXTS),
                None,
                [],
                {},
                "../../outside",
                [[1]],
                [number(dice)] * 4,
                {"name": "numcodecs.pickle"},
                True,
            ]
        )
    target.write_text(json.dumps(document))
    if dice.random() < 0.1:
        chunk = path / "0" / "c" / "0" / "0" / "0" / "0"
        chunk.unlink()
        chunk.symlink_to(place.secret)
    return Attempt(path, image(path))


def hdf5(dice: random.Random, place: Place) -> Attempt:
    import h5py

    path = place.folder / "a.h5"
    way = dice.choice(["external", "virtual", "storage", "soft", "object", "huge", "chunks", "text", "spacing"])
    with h5py.File(place.secret.with_suffix(".h5"), "w") as file:
        file["raw"] = np.full(SHAPE, 0x5A5A, np.int16)
    with h5py.File(path, "w") as file:
        if way == "external":
            file["raw"] = h5py.ExternalLink(str(place.secret.with_suffix(".h5")), "raw")
        elif way == "virtual":
            layout = h5py.VirtualLayout(SHAPE, np.int16)
            layout[:] = h5py.VirtualSource(str(place.secret.with_suffix(".h5")), "raw", SHAPE)
            file.create_virtual_dataset("raw", layout)
        elif way == "storage":
            file.create_dataset("raw", SHAPE, np.int16, external=[(str(place.secret), 0, 120)])
        elif way == "soft":
            file["raw"] = h5py.SoftLink("/raw")
        elif way == "object":
            file.create_dataset("raw", data=[b"a", b"bb"], dtype=h5py.special_dtype(vlen=bytes))
        elif way == "huge":
            file.create_dataset("raw", (abs(number(dice)) + 1,) * 3, np.int16, chunks=(1, 1, 1))
        else:
            data = file.create_dataset("raw", data=pixels(dice))
            data.attrs[dice.choice(["element_size_um", "spacing", "DIMENSION_LABELS"])] = dice.choice((*TEXTS[:4], "x"))
    return Attempt(path, image(path))


def bomb(dice: random.Random, place: Place) -> Attempt:
    path = place.folder / dice.choice(["a.nii.gz", "a.npz", "a.nrrd"])
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(
                "a.npy",
                b"\x93NUMPY\x01\x00\x46\x00"
                + b"{'descr': '<i2', 'fortran_order': False, 'shape': (1,)}".ljust(69)
                + b"\n"
                + bytes(1 << 26),
            )
    elif path.suffix == ".nrrd":
        path.write_bytes(
            b"NRRD0005\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: gzip\n\n" + gzip.compress(bytes(1 << 26))
        )
    else:
        path.write_bytes(gzip.compress(bytes(1 << 26), 1))
    return Attempt(path, image(path))


def points(dice: random.Random, place: Place) -> Attempt:
    from voxelry.io import read_landmarks

    cells = ["name", "x", "y", "z", "1", "2.5", *TEXTS, *map(str, REALS)]
    ending = dice.choice(["csv", "fcsv", "txt", "json", "mrk.json", "tsv"])
    path = place.folder / f"a.{ending}"
    if "json" in ending:
        base: Any = {
            "markups": [
                {
                    "type": "Fiducial",
                    "coordinateSystem": "LPS",
                    "controlPoints": [{"label": "a", "position": [1, 2, 3]}],
                }
            ]
        }
        node = base["markups"][0]
        holder, key = dice.choice(
            [
                (base, "markups"),
                (node, "coordinateSystem"),
                (node, "controlPoints"),
                (node["controlPoints"][0], "position"),
                (node["controlPoints"][0], "label"),
            ]
        )
        holder[key] = dice.choice(
            [None, 1, "x", [], {}, [1], [[1, 2, 3]] * 3, dice.choice(TEXTS), ["a", "b", "c"], [1e999] * 3]
        )
        path.write_text(json.dumps(base))
    else:
        head = dice.choice(["name,x,y,z\n", "# Markups fiducial file version = 4.11\n# CoordinateSystem = 3\n", ""])
        path.write_text(
            head + "\n".join(",".join(dice.choice(cells) for _ in range(dice.randint(1, 5))) for _ in range(3)), "utf-8"
        )
    return Attempt(path, lambda: [read_landmarks(path)][1:] or None)


def bundle(dice: random.Random, place: Place) -> Attempt:
    from voxelry.bundle.checkpoint import read_checkpoint
    from voxelry.bundle.model import load
    from voxelry.data.splits import read_split
    from voxelry.engine.plan_file import read_plan
    from voxelry.models.adapters.file import read_adapter

    payload = pickle.dumps(Bomb(place.trace))
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{n}: &{n} [{','.join(['*' + m] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = [
        f"!!python/object/apply:os.mkdir ['{place.trace}']",
        "format: 1\nnetwork: {name: x}\ntask: {name: landmarks}",
        laughs,
        "format: 1\ntask: [1]",
        "- " * 3000,
        "\x00",
        "format: 1",
        "? {a: b}\n: c",
        *TEXTS,
    ]
    text = dice.choice(texts)
    size = dice.choice([8, 2**40, 2, 2**63 - 1])
    header = dice.choice(
        [b"{}", b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}', b"[" * 99, b'{"__metadata__":3}']
    )
    weights = dice.choice(
        [payload, struct.pack("<Q", size) + header, struct.pack("<Q", len(header)) + header + bytes(4), b""]
    )
    for name, content in (
        ("config.yaml", text.encode()),
        ("adapter.yaml", text.encode()),
        ("weights.safetensors", weights),
        ("adapter.safetensors", weights),
        ("card.md", b""),
    ):
        (place.folder / name).write_bytes(content)
    (place.folder / "plan.yaml").write_text(text, "utf-8")
    (place.folder / "split.json").write_text(dice.choice([text, '{"train": 1}', '[{"train": [[]]}]']), "utf-8")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", payload)
        file.writestr("archive/version", "3")
    (place.folder / "last.ckpt").write_bytes(dice.choice([payload, stream.getvalue(), b"", text.encode()]))
    name, read = dice.choice(
        [
            ("config.yaml", lambda: load(place.folder, "cpu")),
            ("adapter.yaml", lambda: read_adapter(place.folder)),
            ("last.ckpt", lambda: read_checkpoint(place.folder / "last.ckpt")),
            ("plan.yaml", lambda: read_plan(place.folder / "plan.yaml")),
            ("split.json", lambda: read_split(place.folder / "split.json")),
        ]
    )
    return Attempt(place.folder / name, lambda: read() and None)


def names(dice: random.Random, place: Place) -> Attempt:
    odd = dice.choice(["a\nvoxelry: error: b", "a\x1b[2J", "a\r", "\u202ea", "a" * 200, "a\x07", "\x9b2J", "a::b"])
    path = place.folder / f"{odd}{dice.choice(['.nii', '.tif', '.npy', '.h5', '.png', '.csv', ''])}"
    path.write_bytes(dice.randbytes(40))
    return Attempt(path, image(path))


MAKERS: dict[str, Callable[[random.Random, Place], Attempt]] = {
    "nifti": nifti,
    "metaimage": metaimage,
    "nrrd": nrrd,
    "npy": array,
    "tiff": tiff,
    "dicom": dicom,
    "zarr": zarr,
    "hdf5": hdf5,
    "bombs": bomb,
    "points": points,
    "models": bundle,
    "names": names,
}

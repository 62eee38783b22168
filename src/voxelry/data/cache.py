"""Preprocessed samples on disk, so that each is made once.

An entry is a safetensors file named after what went into it: the bytes of the case's files, the
preprocessing settings, the reader and the version of this code. Changing any of them makes another entry;
renaming or copying the files does not. Entries appear whole or not at all (written beside, then renamed),
so a build can be interrupted and any number of processes can share a folder. A damaged entry is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError
from voxelry.core.remote import Remote
from voxelry.core.space import Space
from voxelry.data.layouts.case import Case
from voxelry.data.sample import Sample
from voxelry.io.images.companions import companions
from voxelry.io.images.image import split_dataset

__all__ = ["ABANDONED", "Cache", "content_hash", "stamps"]

_VERSION = 3  # of the entries: raise it when preprocessing gives other values for the same settings
_TENSORS = ("image", "landmarks", "labels", "boxes", "masks", "classes", "target", "present", "levels")
ABANDONED = 24 * 3600.0  # seconds after which an unfinished entry has no writer any more


class Cache:
    """A folder of preprocessed samples.

    Args:
        root: made when first written to. Entries lie in `root/ab/abcd....safetensors`, and what is known of
            the source files in `root/index/`; everything there may be deleted at any time.
    """

    def __init__(self, root: str | PathLike[str]):
        self.root = Path(root)

    def key(self, case: Case, settings: Mapping[str, Any]) -> str:
        """What the entry of a case is called under these settings.

        Args:
            case: its files' bytes and its options count, its name only where a table is read by it.
            settings: plain values that can go to JSON.

        Raises:
            FileError: a file of the case can't be read.
        """
        files = {use: [self._part(path) for path in paths] for use, paths in case.files.items()}
        row = case.name if case.layout == "hand" else ""
        content = {
            "version": _VERSION,
            "files": files,
            "row": row,
            "layout": case.layout,
            "options": {key: repr(value) for key, value in sorted(case.options.items())},
            "point_options": {key: repr(value) for key, value in sorted(case.point_options.items())},
            "settings": settings,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Where the entry of a key is or would be."""
        return self.root / key[:2] / f"{key}.safetensors"

    def load(self, key: str) -> Sample | None:
        """The sample of a key, or None if there is none or it is damaged."""
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return None
        return _unpack(data)

    def store(self, key: str, sample: Sample) -> Path:
        """Write an entry.

        Raises:
            FileError: the disk is full or the folder can't be written; nothing is left behind.
        """
        path = self.path(key)
        data = _pack(sample)
        with replacing(path) as place:
            place.write_bytes(data)
        return path

    def fetch(self, case: Case, settings: Mapping[str, Any], make: Callable[[], Sample]) -> Sample:
        """The sample of a case from its entry, which is made first if need be.

        Raises:
            FileError: see `key` and `store`; and whatever `make` raises.
        """
        key = self.key(case, settings)
        sample = self.load(key)
        if sample is None:
            sample = make()
            self.store(key, sample)
        return sample.replace(name=case.name, source=str(case.image))

    def sweep(self, older_than: float) -> None:
        """Remove what killed writers left unfinished more than `older_than` seconds ago."""
        limit = time.time() - older_than
        for folder in self.root.glob("*/.*.part"):
            try:
                if folder.stat().st_mtime <= limit:
                    shutil.rmtree(folder, ignore_errors=True)
            except OSError:  # another process was faster
                continue

    def _part(self, path: Path) -> list[str]:
        """The digest of a file, and for `file.h5::dataset` the name of the dataset."""
        file, inside = split_dataset(path)
        return [self._digest(file)] if inside is None else [self._digest(file), inside]

    def _digest(self, path: Path) -> str:
        """`content_hash` of a file, remembered by its path, size and time of change."""
        stamp = [[str(part), size, modified] for part, size, modified in stamps(path)]
        note = self.root / "index" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()}.json"
        try:
            known = json.loads(note.read_bytes())
            if known["stamp"] == stamp:
                return str(known["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there yet, or damaged: it is only a shortcut
        digest = content_hash(path)
        with replacing(note) as place:
            place.write_text(json.dumps({"stamp": stamp, "digest": digest}), encoding="utf-8")
        return digest


def content_hash(path: Path) -> str:
    """SHA-256 over the bytes of a file, of its data file if it is a header, or of all files of a folder.

    Raises:
        FileError: something can't be read.
    """
    digest = hashlib.sha256()
    for part, size, _ in stamps(path):
        digest.update(f"{part}\0{size}\0".encode())
        file = path / part if path.is_dir() else path.parent / part if part else path
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise FileError(file, f"can't be read: {error.strerror}") from None
    return digest.hexdigest()


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """Relative name, size and time of change (ns) of every file that makes up an image; "" for the file itself."""
    try:
        if isinstance(path, Remote) and path.is_dir():
            below = [(str(file.relative_to(path)), status) for file, status in path.files().items()]
            return [(name, status.st_size, status.st_mtime_ns) for name, status in below]
        if path.is_dir():
            files = [(str(file.relative_to(path)), file) for file in sorted(path.rglob("*")) if file.is_file()]
        else:
            files = [("", path), *((file.name, file) for file in companions(path))]
        return [(name, status.st_size, status.st_mtime_ns) for name, file in files for status in [file.stat()]]
    except OSError as error:
        raise FileError(path, f"can't be read: {error.strerror}") from None


def _pack(sample: Sample) -> bytes:
    from safetensors.torch import save

    found = {name: getattr(sample, name) for name in _TENSORS}
    tensors = {name: _narrowed(tensor).contiguous() for name, tensor in found.items() if tensor is not None}
    header = {
        "affine": sample.space.affine.tolist(),
        "shape": list(sample.space.shape),
        "landmark_names": list(sample.landmark_names),
        "checksum": _checksum(tensors),
    }
    return save(tensors, metadata={"voxelry": json.dumps(header)})


def _unpack(data: bytes) -> Sample | None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["voxelry"])
        if header["checksum"] != _checksum(tensors):
            return None
        for name in ("labels", "masks", "classes"):
            if name in tensors:
                tensors[name] = tensors[name].to(torch.int64)
        return Sample(
            image=tensors.pop("image"),
            space=Space(tuple(header["shape"]), np.asarray(header["affine"])),
            name="",
            landmark_names=tuple(header["landmark_names"]),
            **tensors,
        )
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _narrowed(tensor: Tensor) -> Tensor:
    """Whole numbers in the smallest type that holds them: eight bytes a label are mostly zeros."""
    if tensor.dtype != torch.int64 or not tensor.numel():
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return tensor.to(dtype)
    return tensor


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over all tensors; it finds a flipped bit, which the format itself does not."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data, value)
    return value

"""The crop index at scale, and reading crops against TensorStore alone; prints what is asked and what is measured.

The index: 94 volumes of 1408 voxels a side (zarr without chunks on disk, so they take no room) with 10,000 boxes
each in an SQLite source, cut into 1,000,912 crops of 64 voxels. A process of its own builds it, another looks
crops up; memory is the peak of each whole process, Python and libraries included.

Reading: random crops of 64 voxels from a zarr of 256 voxels a side in compressed chunks of 64, all from the page
cache, by `CropReader` and by TensorStore's own `store[window].read().result()`, in turns.

    python benchmarks/crops.py [--volumes 94] [--crops 150] [--rounds 7]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDE, CROP, BOXES = 1408, 64, 10_000
BUILD_S, LOOKUP_MS, MEMORY_MB, SHARE = 60.0, 1.0, 300.0, 0.9


def peak_mb() -> float:
    """Most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def make_source(folder: Path, volumes: int) -> Path:
    """Volumes by metadata alone, and the database that lists them and their objects."""
    generator = np.random.default_rng(0)
    source = folder / "source.sqlite"
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [SIDE] * 3,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [CROP] * 3}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "dimension_names": ["z", "y", "x"],
    }
    with sqlite3.connect(source) as connection:
        connection.execute("CREATE TABLE annotations (file_path TEXT, split TEXT)")
        connection.execute("CREATE TABLE boxes (file_path TEXT, instance_id INT, z1, y1, x1, z2, y2, x2)")
        for number in range(volumes):
            name = f"volume_{number:03d}.zarr"
            (folder / name).mkdir()
            (folder / name / "zarr.json").write_text(json.dumps(array))
            connection.execute("INSERT INTO annotations VALUES (?, ?)", (name, "train" if number % 5 else "test"))
            low = generator.integers(0, SIDE - 40, (BOXES, 3)) - 0.5
            high = low + generator.integers(10, 40, (BOXES, 3))
            rows = ((name, place + 1, *box) for place, box in enumerate(np.concatenate([low, high], axis=1).tolist()))
            connection.executemany("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return source


def build(source: str, out: str) -> dict[str, float]:
    """Build the index; run in a process of its own."""
    from voxelry.data.crops.build import build_crop_index
    from voxelry.data.crops.settings import CropSettings

    before = peak_mb()
    begin = time.perf_counter()
    build_crop_index(source, out, CropSettings(CROP, statistics=False, min_objects=0))
    return {"seconds": time.perf_counter() - begin, "peak": peak_mb(), "libraries": before}


def look_up(index: str, _: str) -> dict[str, float]:
    """Look up random crops; run in a process of its own."""
    from voxelry.data.crops.index import CropIndex

    opened = CropIndex(index)
    numbers = np.random.default_rng(1).integers(0, len(opened), 3000).tolist()
    times = []
    for number in numbers:
        begin = time.perf_counter()
        opened.crop(number)
        times.append(time.perf_counter() - begin)
    return {
        "crops": float(len(opened)),
        "median": float(np.median(times)) * 1e3,
        "slowest": float(np.percentile(times, 99)) * 1e3,
        "peak": peak_mb(),
    }


def alone(work: str, first: str, second: str = "") -> dict[str, float]:
    """A function of this file in a fresh process."""
    command = [sys.executable, __file__, "--work", work, first, second]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def reading(folder: Path, crops: int, rounds: int) -> tuple[float, float, float]:
    """Crops per second by our reader, by TensorStore, and the median ratio of a round."""
    import tensorstore

    from voxelry.core.space import Space
    from voxelry.data.crops.reader import CropReader, Stored
    from voxelry.io import open_image, write_image

    generator = np.random.default_rng(2)
    volume = generator.poisson(40, (1, 256, 256, 256)).astype(np.uint16)
    path = write_image(folder / "read.zarr", volume, Space.from_spacing((256,) * 3))
    stored, reader = Stored.of(open_image(path), {}), CropReader()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/0/"}}
    store = tensorstore.open(spec, read=True, open=True).result()
    corners = generator.integers(0, 256 - CROP, (crops, 3)).tolist()
    windows = [tuple(slice(low, low + CROP) for low in corner) for corner in corners]

    def seconds(read: Callable[[tuple[slice, ...]], object]) -> float:
        begin = time.perf_counter()
        for window in windows:
            read(window)
        return time.perf_counter() - begin

    def ours(window: tuple[slice, ...]) -> np.ndarray:
        return reader.read(stored, window)

    def theirs(window: tuple[slice, ...]) -> np.ndarray:
        return store[(slice(None), *window)].read().result()

    assert all(np.array_equal(ours(window), theirs(window)) for window in windows[:5])
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    own, other = np.median(pairs, axis=0)
    return crops / float(own), crops / float(other), float(np.median([b / a for a, b in pairs]))


def verdict(name: str, asked: str, measured: str, kept: bool) -> None:
    print(f"{name:34} asked {asked:12} measured {measured:26} {'kept' if kept else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=94)
    parser.add_argument("--crops", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, first, second = options.work
        print(json.dumps({"build": build, "look_up": look_up}[name](first, second)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = make_source(folder, options.volumes)
        index = folder / "index.sqlite"
        built = alone("build", str(source), str(index))
        looked = alone("look_up", str(index))
        print(f"{looked['crops']:.0f} crops, {options.volumes * BOXES} objects, {index.stat().st_size / 1e6:.0f} MB")
        verdict("built", f"< {BUILD_S:g} s", f"{built['seconds']:.1f} s", built["seconds"] < BUILD_S)
        libraries = f"{built['peak']:.0f} MB ({built['libraries']:.0f} of imports)"
        verdict("memory of the build", f"< {MEMORY_MB:g} MB", libraries, built["peak"] < MEMORY_MB)
        spread = f"{looked['median']:.3f} ms (99 %: {looked['slowest']:.3f})"
        verdict("a lookup", f"< {LOOKUP_MS:g} ms", spread, looked["median"] < LOOKUP_MS)
        verdict("memory of the lookups", f"< {MEMORY_MB:g} MB", f"{looked['peak']:.0f} MB", looked["peak"] < MEMORY_MB)
        own, other, ratio = reading(folder, options.crops, options.rounds)
        speeds = f"{ratio:.2f} ({own:.0f} and {other:.0f} a second)"
        verdict("reading, of TensorStore's own", f">= {SHARE:g}", speeds, ratio >= SHARE)


if __name__ == "__main__":
    main()

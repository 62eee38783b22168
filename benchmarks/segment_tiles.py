"""Volumes larger than what a detector sees at once: memory, time, objects, and a prediction that is killed.

    python benchmarks/segment_tiles.py --model runs/segment_nuclei/nuclei/bundle
    python benchmarks/segment_tiles.py --detector oracle --sizes 128 256 512

Phantom nuclei as OME-Zarr, predicted by `voxelry predict` in a process of its own, whose peak memory is what the system
says of it. Then the same command is killed (SIGKILL) when half of the tiles are done, and started again.

With `--detector oracle` the truth takes the place of the network, everything else stays: reading, the state on disk,
joining, writing. It shows what tiling costs and loses by itself; its scores say nothing of any network.

The volume is put together from blocks of 128 voxels. Nuclei that a block's border would cut are left out of image
and truth, so that every outline is whole; tiles cut the others as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

BLOCK = 128
CHUNK = 64
DIAMETER = 22  # voxels along a row
TRAINED = 40 * 64 * 64  # voxels that the network's limits of proposals and detections are meant for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a bundle of the task segment")
    parser.add_argument("--detector", choices=("network", "oracle"), default="network")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="voxels a side, multiples of 128")
    parser.add_argument("--tile", type=int, nargs="+", default=[192], help="voxels, one number or one per axis")
    parser.add_argument("--overlap", type=float, default=1 / 6, help="share of a tile that the next one sees as well")
    parser.add_argument("--kill", type=int, nargs="*", help="sizes to kill and start again; by default all")
    parser.add_argument("--blocks", type=int, default=8, help="different blocks that the volumes are made of")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/segment_tiles"))
    parser.add_argument("--stage", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args()
    if arguments.stage:
        run: Any = STAGES[arguments.stage[0]]
        run(arguments, *arguments.stage[1:])
        return
    if any(size % BLOCK for size in arguments.sizes):
        parser.error(f"--sizes: expected multiples of {BLOCK}")
    if arguments.model is None and arguments.detector == "network":
        parser.error("--model: expected a bundle, or --detector oracle")
    # Only the standard library here: a child's peak memory begins with that of the process that started it.
    arguments.out.mkdir(parents=True, exist_ok=True)
    if len(arguments.tile) == 1:
        arguments.tile *= 3
    if arguments.detector == "oracle":
        arguments.model = arguments.out / "bundle"
        stage(arguments, "bundle", str(arguments.model))
    rows = [measured(arguments, size) for size in arguments.sizes]
    show(arguments, rows)


def measured(arguments: argparse.Namespace, size: int) -> dict[str, Any]:
    """Everything about one size."""
    image, truth = (arguments.out / f"{name}_{size}.ome.zarr" for name in ("volume", "truth"))
    if not truth.exists():
        stage(arguments, "phantom", str(size), str(image), str(truth))
    whole, broken = (arguments.out / arguments.detector / str(size) / name for name in ("whole", "broken"))
    for folder in (whole, broken):
        shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    peak = finished(predicting(arguments, image, truth, whole))
    row = {"size": size, "seconds": time.monotonic() - started, "peak": peak}
    print(f"{size}: predicted in {row['seconds']:.0f} s, peak {peak / 2**20:.0f} MiB", flush=True)
    row |= json.loads(stage(arguments, "compare", str(whole / image.name), str(truth), str(size)).splitlines()[-1])
    if arguments.kill is None or size in arguments.kill:
        process = predicting(arguments, image, truth, broken)
        pattern = f".{image.name.removesuffix('.ome.zarr')}.tiles/*/tile_*.npz"
        while len(list(broken.glob(pattern))) < row["tiles"] // 2:
            if process.poll() is not None:
                raise SystemExit("the prediction ended before it could be killed")
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {path: path.stat().st_mtime_ns for path in broken.glob(pattern)}
        started = time.monotonic()
        process = predicting(arguments, image, truth, broken)
        kept = before
        while process.poll() is None:
            now = {path: stamp(path) for path in before}
            if None not in now.values():  # they are gone when all is written
                kept = now
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"the second run ended with status {process.returncode}")
        row |= {"killed_at": len(before), "redone": sum(kept[path] != before[path] for path in before)}
        row |= {"resumed_seconds": time.monotonic() - started, "same": tree(whole) == tree(broken)}
        print(f"{size}: killed after {len(before)} of {row['tiles']} tiles; the same: {row['same']}", flush=True)
    return row


def show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    names = ["size", "tiles", "seconds", "peak MiB", "AP@0.5", "PQ", "predicted", "truth"]
    names += ["killed at", "redone", "same"]
    who = "THE TRUTH AS DETECTOR (no network)" if arguments.detector == "oracle" else f"network of {arguments.model}"
    print(f"\n{who}; tiles of {arguments.tile}, overlap {arguments.overlap:.3f}, {arguments.threads} threads")
    print(" | ".join(f"{name:>9}" for name in names))
    for row in rows:
        cells = [f"{row['size']}³", row["tiles"], f"{row['seconds']:.0f}", f"{row['peak'] / 2**20:.0f}"]
        cells += [f"{row['ap_50']:.3f}", f"{row['pq']:.3f}", f"{row['predicted']:.0f}", f"{row['truth']:.0f}"]
        cells += [row.get("killed_at", "-"), row.get("redone", "-"), row.get("same", "-")]
        print(" | ".join(f"{cell!s:>9}" for cell in cells))
    for small, large in pairwise(rows):
        ratio = large["peak"] / small["peak"]
        print(f"peak memory of {large['size']}³ over that of {small['size']}³: {ratio:.2f} (asked: at most 1.3)")


def stage(arguments: argparse.Namespace, *words: str) -> str:
    """Run a part of this script in a process of its own; gives what it prints."""
    return subprocess.run(call(arguments, *words), check=True, stdout=subprocess.PIPE, text=True).stdout


def call(arguments: argparse.Namespace, *words: str) -> list[str]:
    options = ["--tile", *map(str, arguments.tile), "--overlap", str(arguments.overlap), "--out", str(arguments.out)]
    options += ["--blocks", str(arguments.blocks), "--threads", str(arguments.threads)]
    options += ["--model", str(arguments.model), "--detector", arguments.detector]
    return [sys.executable, __file__, *options, "--stage", json.dumps(words)]


def predicting(arguments: argparse.Namespace, image: Path, truth: Path, out: Path) -> subprocess.Popen:
    """`voxelry predict`, begun."""
    command = ["predict", str(image), "--model", str(arguments.model), "--out", str(out)]
    command += ["--format", "ome.zarr", "--device", "cpu"]
    changes = json.loads(stage(arguments, "use"))
    command += [word for name, value in changes.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    if arguments.detector == "oracle":
        start = call(arguments, "oracle", str(truth), *command)
    else:
        start = [sys.executable, "-m", "voxelry", *command]
    threads = str(arguments.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL)


def finished(process: subprocess.Popen) -> int:
    """Wait for a process; gives its peak memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the prediction ended with status {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and what is in it, as a digest."""
    import hashlib

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest() for path in files}


def make_bundle(arguments: argparse.Namespace, path: str) -> None:
    """An untrained model, for the oracle to take the place of."""
    from voxelry.backbones.build import build_backbone
    from voxelry.bundle.bundle import write_bundle
    from voxelry.data.preprocess import Preprocess
    from voxelry.models.mask_rcnn import MaskRCNN
    from voxelry.tasks.segment import SegmentTask

    network = MaskRCNN(build_backbone({"name": "resnet", "ndim": 3, "width": 8, "levels": ["p3"]}), num_classes=2)
    task = SegmentTask(network, tile_size=arguments.tile)
    write_bundle(Path(path), task, Preprocess(normalise="percentile"), record={}, card="An untrained model.\n")


def print_use(arguments: argparse.Namespace) -> None:
    """Settings of the prediction: the tiles, and limits that grow with them from what the model was made for."""
    from math import ceil, prod

    from voxelry.bundle.bundle import read_bundle

    changes: dict[str, Any] = {"task.tile_size": arguments.tile, "task.tile_overlap": arguments.overlap}
    if arguments.detector == "network":
        trained = read_bundle(arguments.model).config["network"]
        share = max(1.0, prod(arguments.tile) / TRAINED)
        for part, name in (
            ("rpn", "pre_nms_top_n_test"),
            ("rpn", "post_nms_top_n_test"),
            ("box", "detections_per_img"),
        ):
            changes[f"network.{part}.{name}"] = ceil(trained[part][name] * share)
    print(json.dumps(changes))


def make_phantom(arguments: argparse.Namespace, size: str, image: str, truth: str) -> None:
    """A volume and its truth, block by block."""
    from itertools import product

    import numpy as np

    from voxelry.core.space import Space
    from voxelry.io.images.zarr_labels import write_labels
    from voxelry.phantoms.nuclei import make_nuclei

    count = int(size) // BLOCK
    spacing = make_nuclei(0, shape=(8, 8, 8)).space.spacing
    space = Space.from_spacing((int(size),) * 3, spacing)
    store = image_store(Path(image), space)
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def blocks() -> Iterator[tuple[tuple[slice, ...], Any]]:
        used = 0
        for number, corner in enumerate(product(range(count), repeat=3)):
            seed = number % arguments.blocks
            if seed not in known:
                known[seed] = whole_nuclei(seed, DIAMETER * spacing[-1])
            # another look at the same block: turned over along some of its axes
            axes = tuple(axis for axis in range(3) if (number // arguments.blocks) >> axis & 1)
            pixels, ids = (np.flip(part, axes) for part in known[seed])
            window = tuple(slice(BLOCK * place, BLOCK * (place + 1)) for place in corner)
            store[(0, *window)].write(np.ascontiguousarray(pixels)).result()
            yield window, np.where(ids > 0, ids + used, 0)
            used += int(ids.max())

    write_labels(truth, blocks(), space, dtype=np.uint32)


def whole_nuclei(seed: int, diameter: float) -> tuple[Any, Any]:
    """A block's pixels and ids, without the nuclei that its border cuts.

    The background around them takes their place: its mean nearby, and noise as it has elsewhere.
    """
    import numpy as np
    from scipy.ndimage import binary_dilation, gaussian_filter

    from voxelry.phantoms.nuclei import make_nuclei

    sample = make_nuclei(seed, shape=(BLOCK,) * 3, diameter=diameter, density=0.3, noise=0.03)
    assert sample.masks is not None
    pixels, ids = sample.image[0].numpy(), sample.masks.numpy()
    faces = [np.take(ids, place, axis) for axis in range(3) for place in (0, BLOCK - 1)]
    cut = np.unique(np.concatenate([face.ravel() for face in faces]))
    gone = np.isin(ids, cut[cut > 0])
    stays = (ids > 0) & ~gone
    empty = binary_dilation(gone, iterations=7) & ~binary_dilation(stays, iterations=1)
    background = ~binary_dilation(ids > 0, iterations=5)
    near = gaussian_filter(np.where(background, pixels, 0), 6) / np.maximum(gaussian_filter(background * 1.0, 6), 1e-6)
    noise = np.random.default_rng(seed).choice((pixels - near)[background], int(empty.sum()))
    pixels[empty] = np.clip(near[empty] + noise, 0, 1)
    kept, places = np.unique(np.where(gone, 0, ids), return_inverse=True)
    assert kept[0] == 0
    return (pixels * 255).round().astype(np.uint8), places.reshape(ids.shape).astype(np.int64)


def image_store(path: Path, space: Any) -> Any:
    """An OME-Zarr 0.5 image of one level to be written window by window."""
    import tensorstore

    scale = [1.0, *space.spacing]
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": letter, "type": "space", "unit": "millimeter"} for letter in "zyx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    ome = {"version": "0.5", "multiscales": [{"name": path.stem, "axes": axes, "datasets": [level]}]}
    attributes = {"ome": ome, "voxelry": {"affine": space.affine.tolist()}}
    path.mkdir(parents=True, exist_ok=True)
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    metadata = {
        "shape": [1, *space.shape],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, CHUNK, CHUNK, CHUNK]}},
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}],
        "dimension_names": ["c", *"zyx"],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / '0'}/"}, "metadata": metadata}
    return tensorstore.open(spec, create=True, write=True, delete_existing=True).result()


def predict_oracle(arguments: argparse.Namespace, truth: str, *command: str) -> None:
    """The command line with the truth in the network's place."""
    import numpy as np

    from voxelry import cli
    from voxelry.data.preprocess.file import PreparedFile
    from voxelry.io import open_image
    from voxelry.ops.instances import Instances, from_labels
    from voxelry.tasks.segment import SegmentTask
    from voxelry.tasks.segment import recipe as segment

    labels = open_image(truth)
    seen: list[slice] = []
    read = PreparedFile.__call__

    def reading(self: PreparedFile, window: Any) -> Any:
        assert self.space.is_close(labels.space)
        seen[:] = window
        return read(self, window)

    def detect(self: SegmentTask, image: Any, space: Any) -> Instances:
        found = from_labels(labels.read(tuple(seen))[0])
        # any number that differs between objects and between their parts
        scores = (0.75 + 0.2 * np.sin(found.voxels())).astype(np.float32)
        return Instances(found.boxes, scores, found.classes, found.crops)

    PreparedFile.__call__, SegmentTask.detect = reading, detect  # type: ignore[method-assign]
    segment._WHOLE_VOXELS = 0  # the smallest size is read in windows, too
    sys.argv = ["voxelry", *command]
    cli.main()


def compare(arguments: argparse.Namespace, predicted: str, truth: str, size: str) -> None:
    """Print the metrics of a label volume against the truth, read slab by slab, and the number of tiles."""
    from voxelry.bundle.bundle import read_bundle
    from voxelry.io import open_image
    from voxelry.metrics.instances import instance_row
    from voxelry.ops.tiles import tiles

    class Volume:
        """Labels on disk that are cut like an array."""

        def __init__(self, path: str):
            self.file = open_image(path)
            self.shape = self.file.space.shape

        def __getitem__(self, part: slice) -> Any:
            return self.file.read((part, *(slice(0, length) for length in self.shape[1:])))[0]

    found: Any = instance_row(Volume(predicted), Volume(truth))  # type: ignore[arg-type]
    changes = {"task.tile_size": arguments.tile, "task.tile_overlap": arguments.overlap}
    task: Any = read_bundle(arguments.model, changes).task
    names = ("ap_50", "ap_75", "pq", "predicted", "truth")
    grid = tiles((int(size),) * 3, task.tile_size, task.tile_overlap, task.tile_step)
    print(json.dumps({name: found[name] for name in names} | {"tiles": len(list(grid))}))


STAGES = {
    "bundle": make_bundle,
    "use": print_use,
    "phantom": make_phantom,
    "oracle": predict_oracle,
    "compare": compare,
}

if __name__ == "__main__":
    main()

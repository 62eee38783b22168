"""A prediction of one CT volume from file to file: what every stage takes beside the network.

    python benchmarks/whole_volume.py --shape 300 512 512 --spacing 1 0.8 0.8     # one thread: OMP_NUM_THREADS=1
    python benchmarks/whole_volume.py segment_3d --shape 150 256 256

An experiment's default model is made on phantoms (one step, in windows of `--tile`), and its prediction of an oblique
volume of whole numbers is profiled twice: once on a volume of two tiles per axis for the time of a call of the network,
and once on the whole volume with a network in its place that costs next to nothing, so that what is avoidable shows
in minutes. The network's own time is the calls times the time of one. Processor time of one process.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import voxelry
from voxelry.core.space import Space
from voxelry.io import write_image
from voxelry.phantoms import write_phantoms

TILTED = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
# stage: parts of the names of the functions whose own and inner time it is
STAGES = {
    "read": ("io/images/record.py", "read"),
    "preprocess": ("data/preprocess/preprocess.py", "__call__"),
    "tiles and blending": ("ops/tiles.py", "blend_tiles"),
    "decode": ("tasks/landmarks/task.py", "_read"),
    "tiles, stitching": ("tasks/segment/tiled.py", "predict_tiled"),
    "write": ("recipe.py", "write"),
}


class Cheap:
    """Maps of the right shape from one product, in place of what a network computes."""

    def __init__(self, maps: int):
        self.maps = maps
        self.calls = 0

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        """In place of a forward pass."""
        self.calls += 1
        return x[:, :1] * torch.arange(1, self.maps + 1, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 2))


def volume(path: Path, shape: Sequence[int], spacing: Sequence[float]) -> Path:
    """A tilted volume of smooth structures and noise in Hounsfield units, int16."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(0, 400, (1, 1, 8, 8, 8)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, size=tuple(shape), mode="trilinear")[0, 0].numpy()
    array = (smooth + rng.normal(0, 30, shape).astype(np.float32)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = TILTED * np.asarray(spacing)
    write_image(path, array[None], Space(tuple(shape), affine))
    return path


def trained(folder: Path, experiment: str, tile: int, spacing: Sequence[float]) -> Path:
    """A bundle of the experiment's default network after one step."""
    kind = "nuclei" if experiment.startswith("segment") else "torso"
    data = write_phantoms(folder / "data", 3, kind=kind, shape=(tile + 8,) * 3, spacing=tuple(spacing))
    settings = {
        "data.root": str(data),
        "output_dir": str(folder / "run"),
        "trainer.max_steps": 1,
        "trainer.progress": False,
        "data.patches": {"size": tile},
    }
    bundle = voxelry.train(f"experiment={experiment}", settings).bundle
    assert bundle is not None
    return bundle


def profiled(run: Callable[[], object]) -> tuple[float, dict[tuple[str, str], float]]:
    """Seconds of a call, and the cumulative time of every function by the end of its file's path and its name."""
    profile = cProfile.Profile(time.process_time)
    begun = time.process_time()
    profile.runcall(run)
    total = time.process_time() - begun
    table: dict[tuple[str, str], float] = {}
    for (path, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for file, function in STAGES.values():
            if path.endswith(file) and name == function:
                table[file, function] = table.get((file, function), 0.0) + cumulative
    return total, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="landmarks_3d")
    parser.add_argument("--shape", nargs=3, type=int, default=(300, 512, 512))
    parser.add_argument("--spacing", nargs=3, type=float, default=(1.0, 0.8, 0.8), help="mm")
    parser.add_argument("--tile", type=int, default=64, help="voxels of a window of the training")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bundle = trained(place, asked.experiment, asked.tile, asked.spacing)
        scan = volume(place / "scan.nii.gz", asked.shape, asked.spacing)
        model = voxelry.load(bundle, device="cpu")
        measure(model, scan, place, asked.tile)


def measure(model: Any, scan: Path, place: Path, tile: int) -> None:
    """Print the table of stages."""
    task = model.task
    network = task.network
    window = torch.rand(1, model.recipe.image_channels(task), tile, tile, tile)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            begun = time.process_time()
            answer = network(window)
            times.append(time.process_time() - begun)
    call = min(times)
    cheap = Cheap(answer.shape[1])
    network.forward = cheap
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total, table = profiled(lambda: voxelry.predict(model, scan, place / "out"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("| stage | s | share of the network's |\n|---|---|---|")
    own = cheap.calls * call
    for stage, key in STAGES.items():
        if key in table:
            print(f"| {stage} | {table[key]:.1f} | {table[key] / own if own else 0:.3f} |")
    print(f"| all but the network | {total:.1f} | {total / own if own else 0:.3f} |")
    print(f"| network: {cheap.calls} calls of {call:.2f} s | {own:.0f} | 1 |")
    print(f"peak {peak / 1e6:.2f} GB ({before / 1e6:.2f} before)")


if __name__ == "__main__":
    main()

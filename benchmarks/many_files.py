"""Many small images predicted by one command: does memory grow, and what does a file cost?

python benchmarks/many_files.py [--files 10000]

Images of 24 x 24 pixels and a network of a few weights, so that everything but the network is what is measured: finding
the files, the ledger, reading, writing. Memory is what the process holds, noted ten times on the way; then the same
command once more, with nothing to do.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.engine.inputs import gather_inputs
from voxelry.engine.predict import predict_files
from voxelry.io import write_image
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

EDGE = 24


def resident() -> float:
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def write_inputs(folder: Path, files: int) -> None:
    """The images, and the bundle of a network that has learned nothing."""
    rng = np.random.default_rng(0)
    space = Space.from_spacing((EDGE, EDGE), 0.5)
    for number in range(files):
        write_image(folder / "images" / f"{number:06d}.png", rng.integers(0, 255, (1, EDGE, EDGE), np.uint8), space)
    network = UNet(ndim=2, out_channels=2, width=8, multipliers=(1, 2), groups=4, attention="none")
    task = LandmarkTask(network, landmark_names=["left", "right"])
    write_bundle(folder / "bundle", task, Preprocess(), record={}, card="")


def main() -> None:
    """Print memory on the way, and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    files = parser.parse_args().files
    logging.getLogger("voxelry").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    held: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, files)
        model = load(folder / "bundle", "cpu")
        done = 0

        def note(path: Path) -> None:
            nonlocal done
            done += 1
            if done % max(1, files // 10) == 0:
                held.append(resident())

        for way in ("predicted", "nothing to do"):
            wall, own, done = time.perf_counter(), time.process_time(), 0
            outcome = predict_files(model, gather_inputs([folder / "images"]), folder / "out", progress=note)
            states = sorted({row.state for row in outcome.rows})
            print(
                f"{way}: {len(outcome.rows)} files {states}, {time.perf_counter() - wall:.0f} s, "
                f"{(time.process_time() - own) / files * 1000:.1f} ms of processor time a file; "
                f"MB held: {', '.join(f'{one:.0f}' for one in held)}",
                flush=True,
            )
            held.clear()


if __name__ == "__main__":
    main()

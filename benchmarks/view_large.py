"""How soon `voxelry view` is there, and what a large pyramid costs the server and the browser.

python benchmarks/view_large.py --scratch FOLDER            # a phantom of 2000 x 2000 x 500 voxels is made there
python benchmarks/view_large.py --scratch FOLDER --model BUNDLE

Of each: seconds from the command's start until the address answers, until the page has drawn the image, and until the
model is there; the server's processor seconds until then; bytes that were sent; memory. Needs Chromium and the built
page (make page). The phantom's chunks are all the same file, so that it is made in a moment; reading it costs as ever.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from playwright.sync_api import Page, sync_playwright

from voxelry.core.space import Space
from voxelry.io import write_image
from voxelry.io.images.image import open_image

SHAPE, CHUNK, LEVELS = (500, 2000, 2000), 128, 4
SPACING = (2.0, 0.5, 0.5)  # µm
MB = 1e6
COLUMNS = ("answers", "drawn", "model", "server", "sent", "server", "JS heap", "page", "graphics")
UNITS = ("s", "s", "s", "CPU s", *("MB",) * 5)
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--enable-precise-memory-info")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="Folder for the phantoms, which are removed.")
    parser.add_argument("--model", type=Path, help="A bundle: how long until it is there.")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    given = parser.parse_args()
    folder = given.scratch / "view_large"
    folder.mkdir(parents=True)
    try:
        small = write_image(
            folder / "small.nii.gz", np.zeros((1, 40, 64, 64), np.int16), Space.from_spacing((40, 64, 64))
        )
        large = pyramid(folder / "large.ome.zarr")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for heads in (COLUMNS, UNITS):
            print(f"{'':24}" + "".join(f"{head:>9}" for head in heads))
        with sync_playwright() as browsers:
            chromium = browsers.chromium.launch(executable_path=given.browser, args=list(FLAGS))
            for name, path, model in cases(small, large, given.model):
                print(
                    f"{name:24}"
                    + "".join(
                        f"{value:9.2f}" if value < 10 else f"{value:9.0f}" for value in seen(chromium, path, model)
                    )
                )
            chromium.close()
    finally:
        shutil.rmtree(folder)


def cases(small: Path, large: Path, model: Path | None) -> Iterator[tuple[str, Path, Path | None]]:
    yield "small", small, None
    yield "small again", small, None  # with the files of both programs in memory
    if model is not None:
        yield "small, with a model", small, model
    yield "2000 x 2000 x 500", large, None


def pyramid(path: Path) -> Path:
    """An OME-Zarr of four levels, each half of the one before along every axis; the same noise in every chunk."""
    grid = np.indices((CHUNK,) * 3) * (2 * np.pi / CHUNK)
    waves = 8000 * (2 + np.sin(3 * grid[0]) * np.sin(2 * grid[1]) + np.sin(5 * grid[2]))
    block = (waves + np.random.default_rng(0).normal(0, 40, waves.shape)).astype(np.uint16)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    datasets = []
    for level in range(LEVELS):
        shape = [max(1, size >> level) for size in SHAPE]
        array = group.create_array(
            str(level),
            shape=shape,
            chunks=(CHUNK,) * 3,
            dtype="u2",
            chunk_key_encoding={"name": "v2", "separator": "."},
        )
        first = path / str(level) / "0.0.0"
        array[tuple(slice(0, min(CHUNK, size)) for size in shape)] = block[tuple(slice(0, size) for size in shape)]
        for place in product(*(range(-(-size // CHUNK)) for size in shape)):
            if any(place):
                os.link(first, path / str(level) / ".".join(map(str, place)))
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [step * 2**level for step in SPACING]}],
            }
        )
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    assert open_image(path).shape == (1, *SHAPE)
    return path


def seen(chromium: Any, path: Path, model: Path | None) -> tuple[float, ...]:
    """What the head of the table says."""
    begin = time.perf_counter()
    with commanded(path, model) as (server, address):
        with urllib.request.urlopen(address):
            answers = time.perf_counter() - begin
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        try:
            page.goto(address)
            page.wait_for_selector("body[data-ready]", timeout=300_000)
            drawn = time.perf_counter() - begin
            cpu = sum(server.cpu_times()[:2])
            loaded = float("nan")
            if model is not None:
                page.wait_for_selector("#predict:enabled", timeout=300_000)
                loaded = time.perf_counter() - begin
            return (
                answers,
                drawn,
                loaded,
                cpu,
                sent(page) / MB,
                peak(server) / MB,
                *(size / MB for size in held(page)),
            )
        finally:
            page.context.close()


@contextmanager
def commanded(path: Path, model: Path | None) -> Iterator[tuple[psutil.Process, str]]:
    """The process of the command, and the address that it told."""
    command = [sys.executable, "-m", "voxelry", "view", str(path), "--no-open", "--out", str(path.parent / "answers")]
    command += [] if model is None else ["--model", str(model), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http\S+", process.stdout.readline())
        try:
            assert found is not None
            yield psutil.Process(process.pid), found.group(0)
        finally:
            process.terminate()


def sent(page: Page) -> int:
    """Bytes of all that the page asked for."""
    return int(page.evaluate("performance.getEntries().reduce((sum, one) => sum + (one.transferSize ?? 0), 0)"))


def peak(server: psutil.Process) -> int:
    """The most memory that the server has held."""
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found.group(1))


def held(page: Page) -> tuple[int, int, int]:
    """JavaScript's heap, and what the page's process and that of the graphics hold, which is a card's elsewhere."""
    page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
    heap = page.evaluate("performance.memory.usedJSHeapSize")
    sizes = {"renderer": 0, "gpu-process": 0}
    for process in psutil.Process().children(recursive=True):
        kind = next((word[7:] for word in process.cmdline() if word.startswith("--type=")), "")
        if kind in sizes:
            sizes[kind] = max(sizes[kind], process.memory_info().rss)
    return int(heap), sizes["renderer"], sizes["gpu-process"]


if __name__ == "__main__":
    main()

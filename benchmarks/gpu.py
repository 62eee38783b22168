"""Everything that is to be known of one GPU, in one run of less than ten minutes, section by section.

    python benchmarks/gpu.py --out gpu.json [--minutes 9] [--only networks boxes] [--compile]

Each section (`benchmarks/gpu_sections/`) has a share of the time; what it leaves over goes to those after it. A row
that fails, or comes too late, gives its reason in place of figures, and the rest goes on. The file is written after
every section. MONAI and torchvision are peers where they are installed; the head of the table says what is missing.

    TRITON_INTERPRET=1 python benchmarks/gpu.py --device cpu --tiny     (whether it runs at all)
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gpu_sections import boxes, detection, fused, memory, networks, roofline
from gpu_sections.bench import Bench, Figures, Rows

SECTIONS: dict[str, tuple[Callable[[Bench], Rows], float]] = {
    "networks": (networks.default_networks, 0.22),
    "unet": (networks.unet_and_monai, 0.16),
    "roofline": (roofline.convolutions, 0.12),
    "memory": (memory.training_steps, 0.12),
    "boxes": (boxes.roi_align_and_nms, 0.12),
    "detection": (detection.mask_rcnn, 0.08),
    "volumes": (detection.volumes_per_second, 0.12),
    "fused": (fused.norm_silu_convolution, 0.06),
}
"""Each section and its share of the time."""


class OutOfTime(BaseException):
    """A section's time is over; no row takes it for a failure of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file, written after every section")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sections together")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes and few rows")
    parser.add_argument("--compile", action="store_true", help="rows of the compiled network in `memory`, too")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --tiny tries whether the script runs")
    bench = Bench(torch.device(options.device), tiny=options.tiny, compiled=options.compile)
    report: dict[str, Any] = {"machine": machine(bench.device), "sections": {}}
    print("\n".join(f"{name}: {value}" for name, value in report["machine"].items()), flush=True)
    end = time.monotonic() + 60 * options.minutes
    waiting = [name for name in SECTIONS if name in options.only]
    while waiting:
        share = SECTIONS[waiting[0]][1] / sum(SECTIONS[name][1] for name in waiting)
        name = waiting.pop(0)
        begin = time.monotonic()
        rows = measured(SECTIONS[name][0], bench, seconds=max(share * (end - begin), 1.0))
        report["sections"][name] = {"seconds": round(time.monotonic() - begin, 1), "rows": rows}
        print_table(name, report["sections"][name])
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")


def machine(device: torch.device) -> dict[str, Any]:
    """The device, the versions that count, and what is missing."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine(), "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32 in convolutions, in products": f"{torch.backends.cudnn.allow_tf32}, "
            f"{torch.backends.cuda.matmul.allow_tf32}",
        }
    for name in ("torch", "voxelry", "triton", "monai", "torchvision"):
        try:
            found[name] = import_module(name).__version__
        except Exception as error:  # a compiled package may fail in any way to load
            found[name] = f"missing ({one_line(error)})"
    return found


def measured(section: Callable[[Bench], Rows], bench: Bench, seconds: float) -> list[Figures]:
    """The rows of a section, those that fail with a `reason`."""
    rows: list[Figures] = []
    what = "the start"
    with alarm(seconds):
        try:
            for what, work in section(bench):
                rows.append({"what": what} | figures_or_reason(work))
                bench.release()
        except (Exception, OutOfTime) as error:  # a preparation that fails, or the time is over
            rows.append({"what": f"stopped at {what}", "reason": one_line(error)})
    bench.release()
    return rows or [{"what": "section", "reason": "has nothing to measure here"}]


def figures_or_reason(work: Callable[[], Figures]) -> Figures:
    try:
        return work()
    except Exception as error:  # whatever it is, the other rows are measured
        return {"reason": one_line(error)}


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after that time, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime(f"after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def print_table(name: str, section: dict[str, Any]) -> None:
    """A section as a table of Markdown, with the columns that any of its rows has."""
    columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
    print(f"\n## {name} ({section['seconds']} s)\n")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in section["rows"]:
        print("| " + " | ".join(shown(row.get(column)) for column in columns) + " |")
    sys.stdout.flush()


def shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

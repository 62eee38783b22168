"""One table and one figure for the runs of a `--multirun`."""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from voxelry.viz import figures
from voxelry.viz.report import Report

__all__ = ["SweepSummary", "few_shot_table", "summarise"]


class SweepSummary(Callback):
    """Hydra's callback that calls `summarise` when a sweep ends; what was there when it began isn't its own."""

    def __init__(self) -> None:
        self._earlier: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the summaries of earlier sweeps."""
        self._earlier = {path: path.stat().st_mtime_ns for path in _summaries(Path(config.hydra.sweep.dir))}

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the sweep's folder."""
        folder = Path(config.hydra.sweep.dir)
        written = summarise(folder, self._earlier)
        if written is not None:
            print(f"summary: {written}")
        elif (folder / "sweep.csv").is_file():
            print(f"no run of this sweep finished: {folder / 'sweep.csv'} is an earlier one's", file=sys.stderr)


def summarise(folder: Path, earlier: Mapping[Path, int] | None = None) -> Path | None:
    """Gather every `summary.json` below `folder` into `sweep.csv` and `sweep.html`.

    Args:
        folder: the sweep's.
        earlier: summaries that don't count unless they were written anew: their times of change (ns) by their paths.

    Returns:
        The page, or None when no run of the sweep finished.
    """
    known = earlier or {}
    rows = [
        {"run": str(path.parent.relative_to(folder)), **json.loads(path.read_text(encoding="utf-8"))}
        for path in _summaries(folder)
        if known.get(path) != path.stat().st_mtime_ns
    ]
    if not rows:
        return None
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return _page(folder, rows)


def _summaries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("**/summary.json")) if path.parent.name != "metrics"]


def few_shot_table(rows: list[dict[str, Any]], metric: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """Label counts, and for scratch and pretrained runs the metric, `(seeds, counts)` with NaN where not run.

    Runs that started from different weights are methods of their own.
    """
    several = len({row.get("pretrained_from") for row in rows if row["pretrained"]}) > 1
    counts = sorted({int(row["training_samples"]) for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    table: dict[str, np.ndarray] = defaultdict(lambda: np.full((len(seeds), len(counts)), np.nan))
    for row in rows:
        method = "pretrained" if row["pretrained"] else "from scratch"
        if several and row["pretrained"]:
            method = f"pretrained: {row.get('pretrained_from')}"
        value = row[metric]
        place = seeds.index(row["seed"]), counts.index(int(row["training_samples"]))
        table[method][place] = np.nan if value is None else value
    return counts, dict(table)


def _page(folder: Path, rows: list[dict[str, Any]]) -> Path:
    report = Report("Sweep", subtitle=str(folder.name))
    metric = (
        "mre_mm"
        if "mre_mm" in rows[0]
        else next((key for key, value in rows[0].items() if isinstance(value, float)), "")
    )
    if metric:
        counts, table = few_shot_table(rows, metric)
        if len(counts) > 1:
            label = "mean radial error (mm)" if metric == "mre_mm" else metric
            figure = figures.few_shot(counts, table, ylabel=label)
            report.section("Few labels").figure(figure, f"{label} on held-out cases against the number of labels")
    shown = ["run", "training_samples", "seed", "pretrained", "pretrained_from", metric]
    report.section("Runs").table([{key: row.get(key, "") for key in shown if key} for row in rows])
    return report.save(folder / "sweep.html")

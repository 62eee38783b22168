"""What `voxelry prepare` does: volumes and labels to shapes and slices, and a page to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.errors import SettingError
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.layouts.prepared import read_manifest
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.files import read_slice_file
from voxelry.data.prepare.run import PrepareReport, prepare_all
from voxelry.data.preprocess.modality import to_unit
from voxelry.data.slices.cut import SliceSample
from voxelry.engine.outcome import FileRow, write_job_report
from voxelry.viz.planes import planes_of
from voxelry.viz.style import INK, PREDICTED, TRUTH, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PrepareSummary", "contact_sheet", "prepare"]

_SHEET = "contact_sheet.png"
_JOBS = "jobs.csv"


@dataclass(frozen=True)
class PrepareSummary:
    """What a prepared folder holds.

    Attributes:
        root: the folder.
        made, kept: cases made now, and found whole.
        faults: one line for each case that couldn't be made.
        warnings: one line for each class of a case that the new grid loses or changes.
        slices: how many there are.
        classes: name, number of cases that have it, and mean volume in ml, of each class.
        modalities: each that images were read as, and the number of cases.
        sheet: the contact sheet.
        rows: what became of each case, by its image.
    """

    root: Path
    made: int
    kept: int
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    slices: int
    classes: tuple[tuple[str, int, float], ...]
    modalities: tuple[tuple[str, int], ...]
    sheet: Path | None = field(default=None)
    rows: tuple[FileRow, ...] = ()

    def render(self) -> str:
        """Text for the terminal."""
        lines = [f"{self.root}: {self.made} cases prepared, {self.kept} already there, {self.slices} slices"]
        for name, cases, volume in self.classes:
            lines.append(f"  {name:<16} in {cases} cases" + (f", {volume:.1f} ml on average" if cases else ""))
        told = ", ".join(f"{name} in {cases} cases" for name, cases in self.modalities)
        lines.append(f"  read as  {told} (--modality says otherwise)")
        lines += [f"  left out {fault}" for fault in self.faults]
        lines += [f"  warning  {line}" for line in self.warnings]
        if self.sheet is not None:
            lines.append(f"  look at  {self.sheet}")
        return "\n".join(lines)


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    layout: str = "auto",
    organs: Sequence[str] | None = None,
    workers: int | None = 0,
    on_error: str = "raise",
    sheet: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
    **settings: Any,
) -> PrepareSummary:
    """Prepare the volumes of a folder for `reconstruct`; what is there already and whole is kept.

    Args:
        source: the folder, in any layout whose cases have labels.
        out: where to write `volumes/`, `labels/`, `sdf/`, `meshes/`, `slices/`, `manifest.json`,
            `jobs.csv`, a table of what became of each case, and the sheet.
        layout: see `find_cases`.
        organs: those of the labels that are taken, by name, in the order of their new numbers; by default all.
        workers: processes; None takes one per core, 0 does it in this one.
        on_error: `raise`, or `skip` for going on with the other cases.
        sheet: whether the contact sheet is drawn.
        progress: called as `progress(done, total, name)` after each case.
        settings: those of `PrepareSettings`, such as `spacing=1.0, classes=5, axes=(0, 1, 2)`.

    Raises:
        SettingError, FileError, DataError: see `find_cases`, `PrepareSettings` and `prepare_all`.
    """
    if Path(source).resolve() == Path(out).resolve():
        raise SettingError(f"out: expected another folder than the source, whose files would be overwritten: {out}")
    if organs is not None:
        settings["options"] = {**(settings.get("options") or {}), "label_dataset": list(organs)}
    chosen = PrepareSettings(**settings)
    cases = find_cases(source, layout, options=chosen.options)
    report = prepare_all(cases, Path(out), chosen, workers=workers, on_error=on_error, progress=progress)
    summary = _summary(report, contact_sheet(report.root) if sheet else None)
    rows = tuple(_row(case, report) for case in cases)
    write_job_report(report.root / _JOBS, rows)
    return replace(summary, rows=rows)


def _row(case: Case, report: PrepareReport) -> FileRow:
    if case.name in report.faults:
        return FileRow(case.image, "failed", note=report.faults[case.name])
    volume = report.root / "volumes" / f"{case.name}.nii.gz"
    return FileRow(case.image, "kept" if case.name in report.kept else "done", volume)


def _summary(report: PrepareReport, sheet: Path | None) -> PrepareSummary:
    classes = []
    for number, name in read_manifest(report.root)["classes"].items():
        volumes = [record["volumes_ml"].get(number) for record in report.records]
        present = [volume for volume in volumes if volume is not None]
        classes.append((name, len(present), float(np.mean(present)) if present else float("nan")))
    kinds = Counter(str(record["modality"]) for record in report.records)
    known = {record["name"] for record in report.records}
    gone = sorted(path.stem for path in (report.root / "cases").glob("*.json") if path.stem not in known)
    warnings = [line for record in report.records for line in record["warnings"]]
    if gone and not report.faults:
        warnings.append(
            f"{gone[0]} (one of {len(gone)}): of an earlier run and not in the source; its files stay, without a place "
            "in the manifest, but data.layout=volumes reads them"
        )
    return PrepareSummary(
        root=report.root,
        made=len(report.made),
        kept=len(report.kept),
        faults=tuple(report.faults.values()),
        warnings=tuple(warnings),
        slices=sum(len(record["slices"]) for record in report.records),
        classes=tuple(classes),
        modalities=tuple(sorted(kinds.items())),
        sheet=sheet,
    )


def contact_sheet(root: str | Path, *, cases: int = 12, columns: int = 4) -> Path:
    """Draw some slices of a prepared folder with mask and click, each as it lies in the patient.

    Args:
        root: the folder.
        cases: cases to show, at even distances; `columns` slices of each.
        columns: pictures in a row.

    Returns:
        The PNG that was written, `contact_sheet.png` in the folder.

    Raises:
        FileError: no manifest, or a damaged slice.
    """
    root = Path(root)
    manifest = read_manifest(root)
    everything = [case for case in manifest["cases"] if case["slices"]]
    chosen = [everything[int(at)] for at in np.unique(np.linspace(0, len(everything) - 1, min(cases, len(everything))))]
    size, head, foot = 2.3, 0.3, 0.4
    fig = new_figure(columns * size, len(chosen) * (size + head) + foot)
    width, height = fig.get_size_inches()
    for row, case in enumerate(chosen):
        slices = case["slices"]
        picked = np.unique(np.round(np.linspace(0, len(slices) - 1, min(columns, len(slices)))).astype(int))
        for column, at in enumerate(picked):
            sample = read_slice_file(root / slices[int(at)]["file"], name=case["name"])
            bottom = height - foot - (row + 1) * (size + head) + 0.05
            place = ((column * size + 0.05) / width, bottom / height, (size - 0.1) / width, (size - 0.1) / height)
            axes = fig.add_axes(place)
            _picture(axes, sample, str(case["modality"]))
            name = manifest["classes"].get(str(sample.label), str(sample.label))
            title = f"{case['name']}\n{sample.plane}, {name}"
            axes.set_title(title, fontsize=7, color=INK, loc="left", pad=3)
    headline(fig, f"{root.name}: {len(manifest['cases'])} cases, mask and click")
    target = root / _SHEET
    with replacing(target) as place_to_write:
        fig.savefig(place_to_write, dpi=110)
    return target


def _picture(axes: Axes, sample: SliceSample, modality: str) -> None:
    """One slice in millimetres, superior (else anterior) up, the patient's right (else anterior) on the left."""
    plane = planes_of(sample.space, anatomical=True)[0]
    middle = [0.0, 0.0]
    image = plane.pixels(to_unit(sample.image[0], modality).numpy(), middle)
    low, high = (float(value) for value in np.percentile(image, (1.0, 99.5)))
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-3), extent=plane.extent, interpolation="nearest")
    if sample.mask is not None:
        mask = plane.pixels(sample.mask.numpy().astype(float), middle)
        left, right, bottom, top = plane.extent
        across = left + (np.arange(mask.shape[1]) + 0.5) * (right - left) / mask.shape[1]
        down = top + (np.arange(mask.shape[0]) + 0.5) * (bottom - top) / mask.shape[0]
        if mask.any() and min(mask.shape) > 1:
            axes.contour(across, down, mask, levels=[0.5], colors=TRUTH, linewidths=1.0)
    if sample.click is not None:
        x, y = plane.project(sample.click.double().numpy())
        axes.plot(x, y, "+", color=PREDICTED, markersize=7, markeredgewidth=1.4)
    axes.set_axis_off()

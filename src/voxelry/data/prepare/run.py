"""All cases of `prepare`: in parallel, going on where an earlier run stopped, with a manifest at the end.

A case is done when its record is there, which is written last; files appear whole or not at all. A run that was
killed, or a file that was damaged since, costs the case it happened to and no other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from voxelry.core.atomic import replacing
from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, FileError, VoxelryError
from voxelry.data.demands import lacking
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.prepared import MANIFEST, VERSION
from voxelry.data.prepare.case import PrepareSettings, is_prepared, prepare_case
from voxelry.data.prepare.template import TEMPLATE, Template
from voxelry.data.segment_names import segment_names

__all__ = ["PrepareReport", "prepare_all"]

Progress = Callable[[int, int, str], None]


@dataclass
class PrepareReport:
    """What a run did.

    Attributes:
        root: the folder that was written.
        records: of the cases that are there, by name.
        made, kept: names of cases made now, and found whole.
        faults: by name, one line for each case that couldn't be made.
    """

    root: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


def prepare_all(
    cases: Sequence[Case],
    root: Path,
    settings: PrepareSettings,
    *,
    workers: int | None = 0,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> PrepareReport:
    """Prepare every case that isn't there yet, and write `manifest.json`.

    Args:
        cases: from `find_cases`, with the options of the settings; each with labels.
        root: made if need be.
        settings: with `classes` None, those that the folder names.
        workers: processes; None takes one per core, 0 does it in this one. More than one need a main module that
            can be imported, as `multiprocessing` says.
        on_error: `raise` stops at the first case that can't be made, `skip` goes on and reports it.
        progress: called as `progress(done, total, name)` after each case.

    Raises:
        FileError: `root` can't be written, or another process is preparing there.
        DataError: a case can't be made (`raise`), or none can; a worker was killed.
        SettingError: an unknown `on_error`.
        KeyboardInterrupt: interrupted; cases in work are finished first, the manifest holds what is there.
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    for case in cases:
        if fault := lacking(case, "labels"):
            raise DataError(f"{case.image}: {fault}")
    names, settings = _classes(cases, settings, skip_broken=on_error == "skip")
    count = min(len(cases), (os.cpu_count() or 1) if workers is None else workers)
    report = PrepareReport(root)
    found: dict[str, dict[str, Any]] = {}
    total = len(cases)
    with _alone(root):
        _sweep(root)
        _keep_template(root, settings)
        try:
            with closing(_outcomes(cases, root, settings, names, count)) as outcomes:
                for name, outcome, made in outcomes:
                    if isinstance(outcome, VoxelryError):
                        if on_error == "raise":
                            raise outcome
                        report.faults[name] = str(outcome)
                    else:
                        found[name] = outcome
                        (report.made if made else report.kept).append(name)
                    if progress is not None:
                        progress(len(found) + len(report.faults), total, name)
        finally:
            report.records = [found[name] for name in sorted(found)]
            if found:
                _write_manifest(report, cases[0].layout, settings, names, complete=len(found) == total)
    if not found:
        first = next(iter(report.faults.values()))
        raise DataError(f"{root}: none of {total} cases could be prepared; the first: {first}")
    return report


def _classes(
    cases: Sequence[Case], settings: PrepareSettings, *, skip_broken: bool
) -> tuple[dict[int, str], PrepareSettings]:
    """Names of the classes, and the settings with their number where that follows from the names or from `merge`."""
    if settings.merge is not None:  # classes of one's own, that nobody has named
        return {}, replace(settings, classes=settings.classes or len(settings.merge))
    names = segment_names(cases, skip_broken=skip_broken)
    return names, replace(settings, classes=max(names)) if settings.classes is None and names else settings


def _outcomes(
    cases: Sequence[Case], root: Path, settings: PrepareSettings, names: dict[int, str], workers: int
) -> Generator[tuple[str, dict[str, Any] | VoxelryError, bool]]:
    """Name, record or error, and whether it was made now, as they come."""
    if workers < 2:
        for case in cases:
            yield case.name, *_one(case, root, settings, names)
        return
    # Fresh processes: a fork of one that has used threads can hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(_one, case, root, settings, names): case.name for case in cases}
        for future in as_completed(futures):
            yield futures[future], *future.result()
    except BrokenProcessPool:
        raise DataError(
            f"{root}: a worker process was killed, perhaps for memory; finished cases are kept, run again with "
            "fewer workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one(
    case: Case, root: Path, settings: PrepareSettings, names: dict[int, str]
) -> tuple[dict[str, Any] | VoxelryError, bool]:
    try:
        record = is_prepared(case, root, settings)
        return (record, False) if record is not None else (prepare_case(case, root, settings, names), True)
    except VoxelryError as error:
        return error, True


def _start_worker() -> None:
    """Leave interrupts to the parent, use one thread, and end with the parent, also where that is killed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".prepare.lock", timeout=0)
        with lock:
            yield
    except Timeout:
        raise FileError(
            root, "another voxelry prepare is writing there", "wait for it or give another folder"
        ) from None
    except OSError as error:
        raise FileError(root, f"can't be written: {error.strerror or error}") from None


def _sweep(root: Path) -> None:
    """Remove what a killed run left unfinished; nobody else is writing."""
    for folder in [*root.glob(".*.part"), *root.glob("*/.*.part"), *root.glob("slices/*/.*.part")]:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_template(root: Path, settings: PrepareSettings) -> None:
    """A copy of the template for the models that are trained in its frame; none of an earlier run's."""
    if settings.register is None:
        (root / TEMPLATE).unlink(missing_ok=True)
        return
    Template.read(Path(settings.register), settings.transform, settings.spacing).write(root / TEMPLATE)


def _write_manifest(
    report: PrepareReport, layout: str, settings: PrepareSettings, names: dict[int, str], *, complete: bool
) -> None:
    numbers = sorted({int(label) for record in report.records for label in record["volumes_ml"]})
    hidden = ("identity", "written")
    manifest = {
        "version": VERSION,
        "complete": complete,
        "layout": layout,
        "settings": settings.plain(),
        "classes": {str(number): names.get(number, f"class {number}") for number in numbers},
        "cases": [{key: value for key, value in record.items() if key not in hidden} for record in report.records],
        "faults": list(report.faults.values()),
    }
    with replacing(report.root / MANIFEST) as place:
        place.write_text(json.dumps(manifest, indent=1), encoding="utf-8")

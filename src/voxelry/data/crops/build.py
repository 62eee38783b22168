"""Building a crop index: one process at a time, one transaction per image, so that it can be killed and goes on.

An image is known by its contents, the source's word on it and the settings: what is finished is not done
again, whatever it is called by now, and what has changed is done anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sql
from filelock import FileLock, Timeout
from sqlalchemy.exc import DatabaseError

from voxelry.core.errors import DataError, FileError, SettingError, VoxelryError
from voxelry.core.rank import per_axis
from voxelry.core.settings import settle
from voxelry.core.space import Space
from voxelry.data.crops.digest import digest
from voxelry.data.crops.grid import crop_starts, crops_showing, slabs
from voxelry.data.crops.index import FILE_BITS, VERSION, VIEWS, tables
from voxelry.data.crops.reader import CropReader, Stored
from voxelry.data.crops.rows import insert_crops, insert_objects, note, remove
from voxelry.data.crops.scan import find_objects, intensities, scan_folder
from voxelry.data.crops.selection import Criterion, parse_selection
from voxelry.data.crops.settings import BuildReport, CropSettings, SourceSettings
from voxelry.data.crops.source import Listed, Objects, Source, checked_boxes, is_database, open_table
from voxelry.data.label_grid import Reference, open_labels
from voxelry.io import open_image
from voxelry.io.meshes import is_mesh

__all__ = ["build_crop_index"]

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, name of the image)`."""


def build_crop_index(
    source: str | Path,
    out: str | Path,
    settings: CropSettings,
    *,
    wait: bool = True,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **reading: Any,
) -> BuildReport:
    """Build an index, or bring one up to date.

    Args:
        source: a folder or an image (`layout` as in `crop_scan`), an SQLite file or a database URL.
        out: the index to write; beside it a lock file, `OUT.lock`, that stays.
        wait: whether to wait for another process that builds this index.
        say: told in one line when it waits.
        reading: of `SourceSettings`.

    Raises:
        DataError: another process builds it and `wait` is False; no crop is left; an image and its labels don't
            fit; ids or boxes are bad; a crop is larger than its volume.
        FileError: an image can't be read.
        SettingError: settings that don't fit.
    """
    asked = settle(SourceSettings, reading)
    criteria = parse_selection(asked.selection)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    report = BuildReport(out)
    lock = FileLock(f"{out}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise DataError(f"{out}: another process is building this index (try again when it is done)") from None
        if say is not None:
            say(f"{out}: another process is building this index; waiting for it")
        report.waited = True
        lock.acquire()
    try:
        about = [criterion for criterion in criteria if criterion.about_objects]
        with _source(source, asked, criteria) as listed:
            _Builder(out, settings, about, dict(asked.options or {}), asked.on_error, report).run(listed, progress)
    finally:
        lock.release()
    return report


def _source(source: str | Path, asked: SourceSettings, criteria: Sequence[Criterion]) -> AbstractContextManager[Source]:
    of_files = [criterion for criterion in criteria if not criterion.about_objects]
    if asked.layout == "table" or (asked.layout == "auto" and is_database(source)):
        return open_table(
            source,
            of_files,
            table=asked.table,
            boxes_table=asked.boxes_table,
            box_edges=asked.box_edges,
            root=None if asked.root is None else Path(asked.root),
        )
    return nullcontext(scan_folder(Path(source), asked.layout, of_files, options=asked.options))


@dataclass
class _Image:
    """An image as it will be indexed: its header, and what is in it."""

    row: Listed
    stored: Stored
    label: Stored | None
    classes: Stored | None
    space: Space
    digests: tuple[str, str]
    identity: str


class _Builder:
    def __init__(
        self,
        out: Path,
        settings: CropSettings,
        criteria: Sequence[Criterion],
        options: dict[str, Any],
        on_error: str,
        report: BuildReport,
    ):
        self.out, self.settings, self.criteria = out, settings, criteria
        self.options, self.on_error, self.report = options, on_error, report
        self.reader = CropReader(handles=4)
        self.wanted = dataclasses.asdict(settings) | {
            "selection": [str(criterion) for criterion in criteria],
            "options": {key: repr(value) for key, value in sorted(options.items())},
        }
        self.engine = sql.create_engine(sql.URL.create("sqlite", database=str(out)), poolclass=sql.NullPool)

    def run(self, source: Source, progress: Progress | None) -> None:
        root = source.root.absolute()
        new = not self.out.exists()
        try:
            self._prepare(root)
            known = self._finished()
            claimed: set[int] = set()
            for done, row in enumerate(source.rows):
                if progress is not None:
                    progress(done, source.total, row.name)
                try:
                    claimed.add(self._bring_up(row, root, known, claimed))
                except VoxelryError as error:
                    if self.on_error == "raise":
                        raise
                    self.report.skipped.append(str(error))
            with self.engine.begin() as connection:
                for number in set(known.values()) - claimed:
                    note(connection, complete="0")
                    remove(connection, number)
                    self.report.removed += 1
                if not connection.execute(sql.select(sql.func.count()).select_from(tables.tables["crops"])).scalar():
                    found = f"{source.total} images" if source.total else "no image"
                    raise DataError(f"{source.title}: {found}, and no crop is left by the selection")
                note(connection, complete="1")
        except DatabaseError as error:
            raise FileError(self.out, f"can't be written: {error.orig}") from None
        except VoxelryError:
            if new and not self._finished():  # nothing in it to go on with
                self.out.unlink()
            raise
        finally:
            self.reader.close()
            self.engine.dispose()
        if progress is not None:
            progress(source.total, source.total, "")

    def _prepare(self, root: Path) -> None:
        """An index with these settings, without what other settings left there."""
        settings = json.dumps(self.wanted, sort_keys=True)
        with self.engine.begin() as connection:
            present = set(sql.inspect(connection).get_table_names())
            if present and "meta" not in present:
                raise FileError(self.out, "is a database of something else", "give another file with --out")
            tables.create_all(connection)
            meta = dict(tuple(row) for row in connection.execute(sql.select(tables.tables["meta"])))
            if (meta.get("version"), meta.get("settings")) != (str(VERSION), settings):
                tables.drop_all(connection)
                tables.create_all(connection)
                meta = {}
                note(connection, version=str(VERSION), settings=settings, complete="0")
            for view in VIEWS:
                connection.exec_driver_sql(view)
            if meta.get("root") != str(root):
                note(connection, root=str(root))

    def _finished(self) -> dict[tuple[str, str], int]:
        """Images that are in the index, by identity and name."""
        files = tables.tables["files"]
        with self.engine.connect() as connection:
            rows = connection.execute(sql.select(files.c.identity, files.c.name, files.c.id)).all()
        return {(identity, name): number for identity, name, number in rows}

    def _bring_up(self, row: Listed, root: Path, known: Mapping[tuple[str, str], int], claimed: set[int]) -> int:
        image = self._image(row)
        candidates = [number for (identity, _), number in known.items() if identity == image.identity]
        same = known.get((image.identity, row.name))
        number = same if same is not None else next((one for one in candidates if one not in claimed), None)
        files = tables.tables["files"]
        if number is not None and number not in claimed:
            names = _names(image, root)
            with self.engine.begin() as connection:
                chosen = [files.c[key] for key in names]
                old = connection.execute(sql.select(*chosen).where(files.c.id == number)).mappings().one()
                if dict(old) != names:
                    connection.execute(files.update().where(files.c.id == number).values(names))
            self.report.kept += 1
            return number
        objects = self._objects(image)
        statistics = None
        if self.settings.statistics:
            statistics = json.dumps(intensities(image.stored, image.space.shape, self.reader))
        with self.engine.begin() as connection:
            number = (
                int(connection.execute(sql.select(sql.func.coalesce(sql.func.max(files.c.id), 0))).scalar_one()) + 1
            )
            crops = self._write_crops(connection, number, image, objects)
            connection.execute(
                files.insert().values(
                    id=number,
                    shape=json.dumps(image.space.shape),
                    affine=json.dumps(image.space.affine.tolist()),
                    channels=image.stored.channels,
                    statistics=statistics,
                    digest=image.digests[0],
                    label_digest=image.digests[1],
                    identity=image.identity,
                    crops=crops,
                    objects=0 if objects is None else len(objects),
                    knows_objects=objects is not None,
                    **_names(image, root),
                )
            )
        self.report.done += 1
        return number

    def _image(self, row: Listed) -> _Image:
        """Headers and digests of a row's files.

        Raises:
            DataError: labels on another grid, a crop larger than the image.
        """
        options = {**row.options, **self.options}
        options.pop("label_dataset", None)  # for `find_cases`
        header = open_image(row.image, **options)
        space = header.space
        parts: list[Stored | None] = []
        whole = self.settings.digest == "whole"
        digests = [digest(row.image, whole=whole)]
        reference = Reference.of_file(row.image, options)
        for path, label_options in ((row.label, row.label_options), (row.classes, {})):
            if path is None:
                parts.append(None)
                digests.append("")
                continue
            if is_mesh(path):
                raise DataError(
                    f"{path}: an index reads labels voxel by voxel, not from surfaces (voxelry prepare makes them)"
                )
            label = open_labels(path, reference, label_options)
            parts.append(Stored.of(label.file, label.options, label.placement))
            digests.append(digest(path, whole=whole))
        size = per_axis(self.settings.crop_size, space.ndim, "crop_size")
        if self.settings.pad == "error" and any(a > b for a, b in zip(size, space.shape, strict=True)):
            raise DataError(
                f"{row.image}: a crop of {size} voxels is larger than the volume of {space.shape}"
                " (set pad=edge or pad=zero, or a smaller crop_size)"
            )
        told = [] if row.objects is None else [_bytes(row.objects)]
        stored = Stored.of(header, options)
        channels = [digest(row.image.parent / name, whole=whole) for name in options.get("channel_files") or ()]
        about = [digests, stored.array, parts[0].array if parts[0] else "", dict(row.columns), told, *channels]
        identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return _Image(row, stored, parts[0], parts[1], space, (digests[0], digests[1]), identity)

    def _objects(self, image: _Image) -> Objects | None:
        """The objects that count, None where nothing is known of any."""
        if image.row.objects is not None:
            drop = self.settings.bad_boxes == "drop"
            objects, dropped, cut = checked_boxes(image.row.objects, image.space.shape, image.row.image, drop=drop)
            self.report.dropped_boxes += dropped
            self.report.cut_boxes += cut
        elif image.label is not None:
            objects = find_objects(image.label, image.space.shape, self.reader, image.classes)
        else:
            return None
        kept = objects.volume >= self.settings.min_volume
        for criterion in self.criteria:
            kept &= criterion.holds(objects.volume if criterion.key == "volume" else objects.classes)
        return objects.take(kept)

    def _write_crops(self, connection: Any, file: int, image: _Image, objects: Objects | None) -> int:
        """Rows of one image; returns how many crops it has."""
        ndim, shape = image.space.ndim, image.space.shape
        size = per_axis(self.settings.crop_size, ndim, "crop_size")
        overlap = per_axis(self.settings.overlap, ndim, "overlap")
        for axis in range(ndim):
            if overlap[axis] >= size[axis]:
                raise SettingError(f"overlap: expected less than the crop of {size}, got {overlap}")
        starts = [crop_starts(*values) for values in zip(shape, size, overlap, strict=True)]
        taken = self.settings.channels or image.stored.channels
        if taken > image.stored.channels:
            raise DataError(f"{image.row.image}: {image.stored.channels} channels, and crops of {taken} are wanted")
        channels = crop_starts(image.stored.channels, taken, 0)
        base = file << FILE_BITS
        if objects is not None:
            insert_objects(connection, base, objects, ndim)
        count = 0
        for part in slabs(starts):
            pairs = None
            if objects is not None:
                pairs = crops_showing(part, size, objects.boxes, min_visible=self.settings.min_visible)
            count += insert_crops(connection, base, count, part, channels, pairs, self.settings.min_objects)
        return count


def _names(image: _Image, root: Path) -> dict[str, Any]:
    """What may change while the contents stay: names and places."""
    return {
        "name": image.row.name,
        "split": image.row.split,
        "file_path": str(image.row.image),
        "label_path": None if image.row.label is None else str(image.row.label),
        "image": image.stored.to_json(root),
        "label": None if image.label is None else image.label.to_json(root),
        "columns": json.dumps(dict(image.row.columns), sort_keys=True),
    }


def _bytes(objects: Objects) -> str:
    state = hashlib.blake2b(digest_size=20)
    for array in (objects.instance, objects.boxes, objects.volume, objects.classes):
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()

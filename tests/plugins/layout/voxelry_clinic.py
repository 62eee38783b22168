"""A folder for each patient, `PATIENT/scan.*` with `PATIENT/points.*`."""

from pathlib import Path

from voxelry.core.errors import DataError
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.layout import Layout, Wanted


class Clinic(Layout):
    """Scans are known by their patient."""

    def fits(self, root: Path) -> bool:
        return any(root.glob("*/scan.*"))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        cases = []
        for scan in root.glob("*/scan.*"):
            points = tuple(scan.parent.glob("points.*"))
            if wanted.landmarks and not points:
                raise DataError(f"{scan}: no points beside it")
            cases.append(Case(scan.parent.name, scan, points, group=scan.parent.name, layout="clinic"))
        return cases

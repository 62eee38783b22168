"""The Cell Tracking Challenge: videos as folders of frames, each with a folder of truth.

    01/t000.tif                        a frame, 2-D or 3-D
    01_GT/SEG/man_seg000.tif           an id per pixel
    01_GT/TRA/man_track000.tif         markers, taken where a video has no SEG
    01_ST/SEG/man_seg000.tif           silver truth, taken where there is no gold

Of a video with truth the frames without any are left out, as are planes of a volume (`man_seg_000_012.tif`). Frames of
one video are a group, which no split parts.
"""

from __future__ import annotations

import re
from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, images_in, visible
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Tracking"]

_VIDEO = re.compile(r"\d{2}")
_FRAME = re.compile(r"t(\d+)")
_TRUTH = re.compile(r"man_(?:seg|track)_?(\d+)")


class Tracking(Layout):
    """`01/t000.tif` with `01_GT/SEG/man_seg000.tif` or `01_GT/TRA/man_track000.tif`."""

    def fits(self, root: Path) -> bool:
        """By a folder of two digits that holds frames."""
        return any(_FRAME.fullmatch(case_name(path)) for video in _videos(root) for path in images_in(video))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per frame."""
        cases = []
        for video in _videos(root):
            truth = _truth(root, video.name)
            for image in images_in(video):
                frame = _FRAME.fullmatch(case_name(image))
                found = None if frame is None else truth.get(int(frame[1]))
                if frame is not None and (found is not None or not truth):
                    name = f"{video.name}_{frame[0]}"
                    cases.append(Case(name, image, instances=found, layout="tracking", group=video.name))
        return cases


def _videos(root: Path) -> list[Path]:
    return [path for path in visible(root) if path.is_dir() and _VIDEO.fullmatch(path.name)]


def _truth(root: Path, video: str) -> dict[int, Path]:
    """The best truth of a video that there is, by the number of the frame."""
    for place in ("GT/SEG", "ST/SEG", "GT/TRA"):
        files = {_TRUTH.fullmatch(case_name(path)): path for path in images_in(root / f"{video}_{place}")}
        if found := {int(match[1]): path for match, path in files.items() if match is not None}:
            return found
    return {}

"""Files that are read with a header: those beside it that hold its pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["companions"]

_HEADERS = (".mhd", ".nhdr", ".hdr", ".img", ".head", ".brik", ".par", ".rec", ".brik.gz")
_LONGEST_HEADER = 1 << 16


def companions(path: Path) -> Iterator[Path]:
    """Files beside a header that hold its pixels, of the same stem or named in its text; none of other files."""
    if not path.name.lower().endswith(_HEADERS):
        return
    with path.open("rb") as stream:
        text = stream.read(_LONGEST_HEADER).decode("latin-1")
    named = {word for line in text.splitlines() for word in re.split(r"[=:\s]+", line) if 0 < len(word) < 256}
    for file in sorted(path.parent.iterdir()):
        if file != path and (file.name in named or file.name.startswith(f"{path.stem}.")) and file.is_file():
            yield file

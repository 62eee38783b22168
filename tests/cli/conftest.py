"""The command, run in the process of the test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from voxelry import cli


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn: object) -> None:
    """Reports without figures, where `drawn` isn't asked for."""


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """Give the root logger back as it was: a training takes it for itself."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def run(monkeypatch, capsys, _own_logging) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; gives exit status, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["voxelry", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capsys.readouterr()
        return status, out, err

    return command

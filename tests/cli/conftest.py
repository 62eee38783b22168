"""The command, run in the process of the test."""

from __future__ import annotations

import sys

import pytest

from voxelry import cli


@pytest.fixture
def run(monkeypatch, capsys):
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

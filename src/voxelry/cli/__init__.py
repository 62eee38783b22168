"""The `voxelry` command.

Nothing heavy is imported here: every command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from voxelry.cli import data, models, view  # they add their commands
from voxelry.cli.terminal import app
from voxelry.core.errors import VoxelryError
from voxelry.core.home import at_home

__all__ = ["app", "data", "main", "models", "view"]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Deep learning on biomedical images and volumes, in patient millimetres."""
    if version:
        import voxelry

        print(f"voxelry {voxelry.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command; errors that a user caused are one line, exit status 1."""
    try:
        app(args=[_expanded(argument) for argument in sys.argv[1:]])
    except VoxelryError as error:
        if "--debug" in sys.argv:
            raise
        print(f"voxelry: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("voxelry: interrupted", file=sys.stderr)
        sys.exit(130)


def _expanded(argument: str) -> str:
    """`--flag=~/path` as `--flag ~/path` comes from a shell."""
    flag, equals, value = argument.partition("=")
    return f"{flag}{equals}{at_home(value)}" if flag.startswith("--") else argument

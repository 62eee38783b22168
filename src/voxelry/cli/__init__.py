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
        _end(str(error))
    except (MemoryError, RuntimeError) as error:
        if "--debug" in sys.argv or not _is_shortage(error):
            raise
        _end(
            f"the memory ran out ({' '.join(str(error).split()) or 'there is none left'}); help in a training: smaller "
            "data.patches or data.batch_size, data.cache=null; in a prediction: a smaller task.tile_size"
        )
    except KeyboardInterrupt:
        print("voxelry: interrupted", file=sys.stderr)
        sys.exit(130)


def _is_shortage(error: Exception) -> bool:
    from voxelry.engine.shortage import is_shortage

    return isinstance(error, MemoryError) or is_shortage(error)


def _end(message: str) -> None:
    print(f"voxelry: error: {message}", file=sys.stderr)
    sys.exit(1)


def _expanded(argument: str) -> str:
    """`--flag=~/path` as `--flag ~/path` comes from a shell."""
    flag, equals, value = argument.partition("=")
    return f"{flag}{equals}{at_home(value)}" if flag.startswith("--") else argument

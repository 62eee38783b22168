"""From the command line to a page: the server on this machine's own address."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelry.bundle.model import Model
from voxelry.core.errors import SettingError
from voxelry.core.optional import require
from voxelry.serve.app import PAGE, make_app
from voxelry.serve.session import Session

__all__ = ["serve"]

HOST = "127.0.0.1"


def serve(
    images: Sequence[Path],
    model: Model | None,
    out: Path,
    *,
    port: int,
    open_browser: bool,
    reading: Mapping[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> None:
    """Show images in a browser until Ctrl-C.

    Args:
        port: 0 for any that is free.
        open_browser: open the page in the standard browser.
        folders: that the images are of, see `Session`.

    Raises:
        SettingError: the page isn't built, or the port is taken.
    """
    uvicorn = require("uvicorn", "view")
    if not (PAGE / "index.html").is_file():
        raise SettingError("view: the page isn't built in this checkout; `make page` builds it (with Node's npm)")
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOST, port))
    except OSError as error:
        raise SettingError(f"port: {port} can't be used: {error.strerror}") from error
    token = secrets.token_urlsafe(24)
    address = f"http://{HOST}:{place.getsockname()[1]}/?token={token}"
    print(f"{address}\nCtrl-C ends it", flush=True)
    if open_browser:
        webbrowser.open(address)
    session = Session(images, model, out, reading, folders=folders)
    server = uvicorn.Server(uvicorn.Config(make_app(session, token), log_level="warning"))
    server.run(sockets=[place])

"""From the command line to a page: the server on this machine's own address, and a model that comes after it."""

from __future__ import annotations

import logging
import re
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxelry.core.errors import CheckpointError, SettingError, VoxelryError
from voxelry.core.optional import require
from voxelry.serve.adapters import load_adapters
from voxelry.serve.app import PAGE, make_app
from voxelry.serve.session import Session

if TYPE_CHECKING:
    from voxelry.bundle.model import Model

__all__ = ["in_background", "serve"]

log = logging.getLogger("voxelry")

HOST = "127.0.0.1"
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)
_SAID = 1 << 10  # bytes of a message on a web socket, which the page has nothing to say on


def serve(
    images: Sequence[Path],
    model: Callable[[], Model] | None,
    out: Path,
    *,
    port: int,
    open_browser: bool,
    reading: Mapping[str, Any] | None = None,
    folders: Sequence[Path] = (),
    hosts: Sequence[str] = (),
    adapters: Sequence[Path] = (),
) -> None:
    """Show images in a browser until Ctrl-C.

    Args:
        model: what loads it; it is called by a thread of its own, and the page is there before.
        port: 0 for any that is free.
        open_browser: open the page in the standard browser.
        folders: that the images are of, see `Session`.
        hosts: names under which a reverse proxy on this machine shows the page.
        adapters: of the model, loaded with it; the first one answers.

    Raises:
        SettingError: the page isn't built, the port is taken, or a host is no name.
    """
    for host in hosts:
        if not _HOST_NAME.fullmatch(host):
            raise SettingError(f"host_name: expected a name without scheme, port and path, got {host!r}")
    uvicorn = require("uvicorn", "view")
    if not (PAGE / "index.html").is_file():
        raise SettingError("view: the page isn't built in this checkout; `make page` builds it (with Node's npm)")
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOST, port))
        place.listen()  # a browser that is quicker than the server waits
    except OSError as error:
        raise SettingError(f"port: {port} can't be used: {error.strerror}") from error
    token = secrets.token_urlsafe(24)
    address = f"http://{HOST}:{place.getsockname()[1]}/?token={token}"
    print(f"{address}\nCtrl-C ends it", flush=True)
    if open_browser:
        webbrowser.open(address)
    loaded = None if model is None else in_background(lambda: load_adapters(model(), adapters))
    session = Session(images, loaded, out, reading, folders=folders)
    server = uvicorn.Server(
        uvicorn.Config(make_app(session, token, hosts=hosts), log_level="warning", ws_max_size=_SAID)
    )
    server.run(sockets=[place])


def in_background(load: Callable[[], Model]) -> Future[Model]:
    """A model that a thread of its own loads; if it can't, that is said on the terminal, too."""

    def work() -> Model:
        try:
            return load()
        except VoxelryError as error:
            print(f"voxelry: error: {error}", file=sys.stderr, flush=True)
            raise
        except Exception as error:  # whatever it was, the page must not wait for ever
            log.exception("the model can't be loaded")
            raise CheckpointError("model: it can't be loaded; the terminal of voxelry view has more") from error

    pool = ThreadPoolExecutor(1, thread_name_prefix="voxelry-load")
    future = pool.submit(work)
    pool.shutdown(wait=False)  # once this is done
    return future

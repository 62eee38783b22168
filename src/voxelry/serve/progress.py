"""How a job goes on, told over a web socket as it happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from voxelry.serve.jobs import Job

__all__ = ["tell"]

PAUSE = 0.05  # seconds between two messages, at least: work of many small parts changes more often than anyone reads


async def tell(job: Job, socket: WebSocket) -> None:
    """Send the record of a job whenever it changes, until it is over or nobody listens any longer.

    Args:
        socket: not yet accepted; nothing is expected from it but its end.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(changed.set)

    await socket.accept()
    gone = asyncio.ensure_future(socket.receive())
    try:
        with job.watched(wake), suppress(WebSocketDisconnect):
            while not gone.done():
                changed.clear()
                over = job.over  # before the record, so that the last one is whole
                await socket.send_json(job.record())
                if over:
                    await socket.close()
                    return
                await asyncio.wait([gone], timeout=PAUSE)
                await _either(gone, changed)
    finally:
        gone.cancel()


async def _either(gone: asyncio.Task[Any], changed: asyncio.Event) -> None:
    """Wait for what comes first."""
    told: asyncio.Task[Any] = asyncio.ensure_future(changed.wait())
    await asyncio.wait([gone, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()

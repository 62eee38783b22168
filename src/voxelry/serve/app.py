"""The addresses of the server, each a few lines on a `Session`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from voxelry.core.errors import FileError, SettingError, VoxelryError
from voxelry.serve.access import Access
from voxelry.serve.jobs import Jobs
from voxelry.serve.progress import tell
from voxelry.serve.session import Session

__all__ = ["PAGE", "make_app"]

PAGE = Path(__file__).with_name("page")
"""Where the built page lies."""
_MOST = 1 << 20  # bytes of a question
_MOST_UPLOADED = 1 << 31  # bytes of a file
Handler = Callable[[Request], Awaitable[Response]]


class _Handlers:
    """What answers each address."""

    def __init__(self, session: Session):
        self.session = session

    async def state(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.session.record))

    async def model(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.session.answering))

    async def header(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.session.header, _case(request, self.session)))

    async def refine(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.session.refine, _case(request, self.session)))

    async def volume(self, request: Request) -> Response:
        return FileResponse(await run_in_threadpool(self.session.volume, _case(request, self.session)))

    async def predict(self, request: Request) -> Response:
        asked = await _body(request, dict)
        return JSONResponse(
            {"job": await run_in_threadpool(self.session.predict, _case(request, self.session), asked)}, 202
        )

    async def job(self, request: Request) -> Response:
        return _looked_after(request, self.session.jobs)

    async def training(self, request: Request) -> Response:
        return _looked_after(request, self.session.trainings)

    async def progress(self, socket: WebSocket) -> None:
        session, asked = self.session, socket.path_params
        queues = {"jobs": session.jobs, "trainings": session.trainings, "checks": session.checks}
        try:
            job = queues[asked["queue"]][asked["job"]]
        except KeyError:
            await socket.close()
        else:
            await tell(job, socket)

    async def thumbnail(self, request: Request) -> Response:
        return FileResponse(await run_in_threadpool(self.session.thumbnail, _case(request, self.session)))

    async def check(self, request: Request) -> Response:
        return JSONResponse({"job": self.session.check()}, 202)

    async def checked(self, request: Request) -> Response:
        return _looked_after(request, self.session.checks)

    async def keep(self, request: Request) -> Response:
        row = await run_in_threadpool(self.session.keep, _case(request, self.session))
        return JSONResponse({**row, "kept": self.session.kept()})

    async def train(self, request: Request) -> Response:
        minutes = (await _body(request, dict)).get("minutes")
        if isinstance(minutes, bool) or not isinstance(minutes, int | float):
            raise SettingError(f"minutes: expected a number, got {minutes!r}")
        return JSONResponse({"job": await run_in_threadpool(self.session.train, float(minutes))}, 202)

    async def adapter(self, request: Request) -> Response:
        name = (await _body(request, dict)).get("name")
        return JSONResponse({"job": await run_in_threadpool(self.session.switch, name)}, 202)

    async def points(self, request: Request) -> Response:
        answer = self.session.answer(_case(request, self.session))
        moved = await _body(request, list)
        await run_in_threadpool(answer.move, moved)
        return JSONResponse(answer.points())

    async def instances(self, request: Request) -> Response:
        case, asked = _case(request, self.session), await _body(request, dict)
        return JSONResponse(await run_in_threadpool(self.session.edit, case, asked))

    async def masks(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.session.masks.listed, _case(request, self.session)))

    async def load_mask(self, request: Request) -> Response:
        case, asked = _case(request, self.session), await _body(request, dict)
        return JSONResponse(await run_in_threadpool(self.session.load_mask, case, asked))

    async def upload_mask(self, request: Request) -> Response:
        case, path = _case(request, self.session), self.session.masks.place(request.query_params.get("name", ""))
        try:
            with path.open("wb") as file:
                async for part in request.stream():
                    await run_in_threadpool(file.write, part)
        except OSError as error:
            raise FileError(path.name, f"can't be written: {error.strerror or error}") from error
        return JSONResponse({"file": self.session.masks.add(case, path)})

    async def overlay(self, request: Request) -> Response:
        case = _case(request, self.session)
        return FileResponse(await run_in_threadpool(self.session.overlay, case, request.path_params["name"]))

    async def difference(self, request: Request) -> Response:
        case = _case(request, self.session)
        return FileResponse(await run_in_threadpool(self.session.difference, case, request.path_params["name"]))

    async def save(self, request: Request) -> Response:
        asked = await _body(request, dict) if await request.body() else {}
        points = str(asked.get("points", "mrk.json"))
        paths = await run_in_threadpool(self.session.save, _case(request, self.session), points)
        return JSONResponse({"folder": str(self.session.out), "files": [path.name for path in paths]})


def make_app(session: Session, token: str, page: Path = PAGE, hosts: Sequence[str] = ()) -> ASGIApp:
    """The server of a session.

    Args:
        token: without which nothing is answered.
        page: folder of the built page.
        hosts: names of machines that pass on what they are asked, see `Access`.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        session.close()

    ask = _Handlers(session)
    routes: list[Any] = [
        Route("/api/state", ask.state),
        Route("/api/model", ask.model),
        Route("/api/cases/{case:int}", ask.header),
        Route("/api/cases/{case:int}/image.nii", ask.volume),
        Route("/api/cases/{case:int}/finer", ask.refine, methods=["POST"]),
        Route("/api/cases/{case:int}/predict", ask.predict, methods=["POST"]),
        Route("/api/cases/{case:int}/points", ask.points, methods=["PUT"]),
        Route("/api/cases/{case:int}/instances", ask.instances, methods=["POST"]),
        Route("/api/cases/{case:int}/masks", ask.masks),
        Route("/api/cases/{case:int}/masks", ask.load_mask, methods=["POST"]),
        Route("/api/cases/{case:int}/masks", ask.upload_mask, methods=["PUT"]),
        Route("/api/cases/{case:int}/files/{name}", ask.overlay),
        Route("/api/cases/{case:int}/files/{name}/difference", ask.difference),
        Route("/api/cases/{case:int}/save", ask.save, methods=["POST"]),
        Route("/api/cases/{case:int}/keep", ask.keep, methods=["POST"]),
        Route("/api/cases/{case:int}/thumbnail.png", ask.thumbnail),
        Route("/api/checks", ask.check, methods=["POST"]),
        Route("/api/checks/{job:int}", ask.checked, methods=["GET", "DELETE"]),
        Route("/api/adapter", ask.adapter, methods=["POST"]),
        Route("/api/train", ask.train, methods=["POST"]),
        Route("/api/jobs/{job:int}", ask.job, methods=["GET", "DELETE"]),
        Route("/api/trainings/{job:int}", ask.training, methods=["GET", "DELETE"]),
        WebSocketRoute("/api/{queue}/{job:int}/progress", ask.progress),
        Mount("/", StaticFiles(directory=page, html=True)),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={VoxelryError: _refused})
    return Access(app, token, _MOST, hosts, uploaded=_MOST_UPLOADED)


def _looked_after(request: Request, jobs: Jobs) -> Response:
    """How a job is, and on DELETE its end."""
    number = request.path_params["job"]
    try:
        if request.method == "DELETE":
            jobs.cancel(number)
        return JSONResponse(jobs[number].record())
    except KeyError:
        return PlainTextResponse("no such job", 404)


def _case(request: Request, session: Session) -> int:
    """The number of an image.

    Raises:
        SettingError: there is no such image.
    """
    number: int = request.path_params["case"]
    if number >= len(session.images):
        raise SettingError(f"case: expected a number below {len(session.images)}, got {number}")
    return number


async def _body(request: Request, type: type) -> Any:
    """What was sent, as JSON.

    Raises:
        SettingError: something else.
    """
    try:
        content = json.loads(await request.body())
    except ValueError:
        content = None
    if not isinstance(content, type):
        raise SettingError(f"body: expected a JSON {'object' if type is dict else 'list'}")
    return content


async def _refused(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)

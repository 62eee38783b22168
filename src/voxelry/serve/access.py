"""Who may ask the server: this machine's browser, by a token that nobody else has.

The token stands in the address that is printed; the first answer puts it into a cookie that scripts can't read and
that other sites' pages can't send. The names of the host and of the page that asks are looked at, too, so that a
foreign page can't reach the server by a name of its own (DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["COOKIE", "Access"]

COOKIE = "voxelry"
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
     b"worker-src 'self' blob:; connect-src 'self' blob: data:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)  # fmt: skip


class Access:
    """Lets through what this machine's browser asks with the token, and refuses everything else.

    Args:
        app: what answers.
        token: the secret.
        most: bytes that a request may have.
        hosts: names, without a port, of other machines that pass on what they are asked, such as a reverse proxy.
        uploaded: bytes that a file may have which is put to an address that ends with `/masks`.
    """

    def __init__(self, app: ASGIApp, token: str, most: int, hosts: Sequence[str] = (), *, uploaded: int = 0):
        self._app, self._token, self._most, self._uploaded = app, token, most, uploaded
        self._hosts = (*_LOCAL, *(host.lower() for host in hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with a line."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        fault = self._fault(Headers(scope=scope), scope)
        if fault is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": fault[1]})
            return
        if fault is not None:
            await PlainTextResponse(fault[1], status_code=fault[0])(scope, receive, send)
            return

        async def guarded(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                own = [*_HEADERS, (b"set-cookie", self._cookie())]
                message["headers"] = [*message.get("headers", ()), *own]  # type: ignore[misc]
            await send(message)

        await self._app(scope, receive, guarded)  # type: ignore[arg-type]

    def _cookie(self) -> bytes:
        return f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict".encode()

    def _fault(self, headers: Headers, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused, and with which status."""
        if _name(headers.get("host", "")).lower() not in self._hosts:
            return 403, "expected a host of this machine, such as 127.0.0.1, or one that --host-name names"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "expected a page of this server, not of another"
        given = [*parse_qs(scope["query_string"].decode("latin-1")).get("token", ())]
        given.append(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))
        if not any(hmac.compare_digest(one.encode(), self._token.encode()) for one in given):
            return 401, "expected the address that voxelry view printed, with its token"
        length = headers.get("content-length", "0")
        is_file = scope.get("method") == "PUT" and scope["path"].endswith("/masks")
        most = self._uploaded if is_file else self._most
        if headers.get("transfer-encoding") or not length.isdecimal() or int(length) > most:
            return 413, f"expected at most {most} bytes, of a length that is said"
        return None


def _name(host: str) -> str:
    """A host without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host

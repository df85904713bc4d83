"""Around every request: an id, headers that confine a browser, and a limit on the body."""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import logs

SECURITY_HEADERS = {
    # No inline script or style and nothing from elsewhere: what a user typed cannot become code.
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SECURITY_HEADERS = [(k.lower().encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]
_ACCEPTED_ID = re.compile(r"[\w.-]{1,64}")


class ResponseHeaders:
    """ASGI middleware: takes the caller's `X-Request-Id` or makes one, and adds the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTED_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _completed(message["headers"], request_id, scope["state"])
            await send(message)

        with logs.bound(request_id=request_id):
            await self.app(scope, receive, send_with_headers)


def _completed(
    headers: Sequence[tuple[bytes, bytes]], request_id: str, state: Mapping[str, Any]
) -> list[tuple[bytes, bytes]]:
    """The headers with those that are missing."""
    rate_limit = state.get("rate_limit", {}).items()
    added = [
        (b"x-request-id", request_id.encode()),
        *((name.lower().encode(), value.encode()) for name, value in rate_limit),
        *_SECURITY_HEADERS,
    ]
    given = {name for name, _ in headers}
    return [*headers, *(pair for pair in added if pair[0] not in given)]


class BodyLimit:
    """ASGI middleware: a body over the limit is refused as soon as it is known to be.

    FastAPI's own limit answers in plain text, outside of every error handler. Paths under
    `/v1/files`, and the dashboard's `/files`, may be as long as an upload.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        received = 0
        is_upload = scope["path"].startswith(("/v1/files", "/files"))
        limit = self.max_upload_bytes if is_upload else self.max_bytes

        async def limited() -> Message:
            nonlocal received
            if announced.isdigit() and int(announced) > limit:
                raise _too_large(limit)
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, limited, send)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"A request may have {limit} bytes.")

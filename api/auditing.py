"""Writing down every request that changes something, once it has been answered."""

import logging

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import audit
from registry.audit import Action
from registry.db import SessionFactory
from registry.tenancy import writing_of

logger = logging.getLogger(__name__)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGES_NOTHING = frozenset({"/v1/estimates", "/jobs/new/estimate", "/jobs/new/preview"})
_MAX_OBJECT = 512


class Auditing:
    """ASGI middleware: after the answer to a request that may change something, a form's too.

    Entries name the method, the route and the path, who asked and what was answered; never a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_audited(scope):
            await self.app(scope, receive, send)
            return
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            await run_in_threadpool(_write, Request(scope), status)


def _is_audited(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] not in _SAFE
        and scope["path"] not in _CHANGES_NOTHING
    )


def _write(request: Request, status: int) -> None:
    who = getattr(request.state, "principal", None)
    if who is None:
        return
    route = request.scope.get("route")
    action = Action(
        key_id=who.key_id,
        action=f"{request.method} {getattr(route, 'path', request.url.path)}",
        object=request.url.path[:_MAX_OBJECT].replace("\0", ""),
        status_code=status,
        request_id=request.state.request_id,
        address=request.client.host if request.client else None,
    )
    sessions: SessionFactory = request.app.state.sessions
    try:
        with writing_of(sessions, who.tenant_id) as writer:
            audit.append(writer, who.tenant_id, action)
    except SQLAlchemyError:
        # The request is answered; what remains is to say in the log that its entry is missing.
        logger.exception("audit entry not written: %s", action)

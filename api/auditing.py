"""Writing down every request that changes something: with the change, or once it is answered."""

import logging

import anyio
import anyio.to_thread
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import audit
from registry.audit import Action
from registry.db import SessionFactory
from registry.prepared import Reader
from registry.tenancy import writing_of

logger = logging.getLogger(__name__)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGES_NOTHING = frozenset({"/v1/estimates", "/jobs/new/estimate", "/jobs/new/preview"})
_MAX_OBJECT = 512
_AT_ONCE = 4
"""Entries of a tenant follow one another: those that wait must not take every thread meanwhile."""


class Auditing:
    """ASGI middleware: after the answer to a request that may change something, a form's too.

    Entries name the method, the route and the path, who asked and what was answered; never a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.writing = anyio.CapacityLimiter(_AT_ONCE)

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
            request = Request(scope)
            if not getattr(request.state, "audited", False):
                await anyio.to_thread.run_sync(_write, request, status, limiter=self.writing)


def _is_audited(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] not in _SAFE
        and scope["path"] not in _CHANGES_NOTHING
    )


def write_within(writer: Reader, request: Request, status: int) -> None:
    """Write the entry in the transaction of the change, which is then not there without it.

    Last, since it holds up the tenant's other entries until the transaction ends; the route sets
    `request.state.audited` once it has ended.
    """
    who = request.state.principal
    audit.append(writer, who.tenant_id, _action(request, who.key_id, status))


def _write(request: Request, status: int) -> None:
    who = getattr(request.state, "principal", None)
    if who is None:
        return
    action = _action(request, who.key_id, status)
    sessions: SessionFactory = request.app.state.sessions
    try:
        with writing_of(sessions, who.tenant_id) as writer:
            audit.append(writer, who.tenant_id, action)
    except SQLAlchemyError:
        # The request is answered; what remains is to say in the log that its entry is missing.
        logger.exception("audit entry not written: %s", action)


def _action(request: Request, key_id: str, status: int) -> Action:
    path = request.scope["path"]
    return Action(
        key_id=key_id,
        action=f"{request.method} {getattr(request.scope.get('route'), 'path', path)}",
        object=path[:_MAX_OBJECT].replace("\0", ""),
        status_code=status,
        request_id=request.state.request_id,
        address=request.client.host if request.client else None,
    )

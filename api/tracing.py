"""One span for every HTTP request, named by its route and never by its path."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import tracing


class Traced:
    """Around the whole application; a stream's span lasts as long as the stream."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request inside its span."""
        if scope["type"] != "http" or tracing.provider() is None:
            await self._app(scope, receive, send)
            return
        with tracing.span(f"HTTP {scope['method']}") as found:

            async def note_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    found["http.response.status_code"] = message["status"]
                await send(message)

            await self._app(scope, receive, note_status)
            found["http.request.method"] = scope["method"]
            found["http.route"] = getattr(scope.get("route"), "path", "unmatched")

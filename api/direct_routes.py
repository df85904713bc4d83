"""Routes whose function reads its request by itself: FastAPI documents them and solves nothing.

To find out who asks and four parameters, FastAPI takes as long as all the rest of the event loop's
part in reading a job. `api.parameters` reads, and describes, what such a route is asked with.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import get_args

from fastapi import Request, Response
from fastapi.params import Security
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes


class DirectRoute(APIRoute):
    """A route of `async def name(request, who)`, where `who` is annotated as everywhere else."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # FastAPI asks for a coroutine, and awaits it.
        """What answers a request.

        Raises:
            TypeError: the function takes something else, which nobody would give it.
        """
        answer, security = self.endpoint, _security_of(self.endpoint)
        identify, needed = security.dependency, SecurityScopes(list(security.scopes or ()))

        async def handle(request: Request) -> Response:
            response: Response = await answer(request, await identify(request, needed))  # type: ignore[misc]  # Not None.
            return response

        return handle


def _security_of(endpoint: Callable[..., object]) -> Security:
    taken = inspect.signature(endpoint).parameters
    found = [one for one in get_args(taken["who"].annotation) if isinstance(one, Security)]
    if list(taken) != ["request", "who"] or not found:
        raise TypeError(f"{endpoint.__name__} must take `request` and `who`, and nothing else")
    return found[0]

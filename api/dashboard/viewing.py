"""Who looks at a page, who may press its buttons, and how a page is answered."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from api.bodies import parse_body
from api.dashboard.sign_in import FormToken, check_form, viewer_of
from api.deps import Principal
from api.errors import Problem

Model = TypeVar("Model", bound=BaseModel)


class SignInNeeded(Exception):
    """Nobody is signed in; the browser is sent to the form."""


def viewer(request: Request) -> Principal:
    """Who looks.

    Raises:
        SignInNeeded: nobody is signed in.
        Problem: 403 when the key may not read jobs.
    """
    who = viewer_of(request)
    if who is None:
        raise SignInNeeded
    if not who.may("jobs:read"):
        raise Problem("insufficient_scope", "This needs the scope jobs:read.")
    request.state.viewer = who
    return who


Viewer = Annotated[Principal, Depends(viewer)]


def looking(scope: str) -> Callable[[Viewer], Principal]:
    """A dependency: who looks, if they may see what this scope opens."""

    def allowed(who: Viewer) -> Principal:
        return _demand(who, scope)

    return allowed


def acting(scope: str) -> Callable[[Request, Viewer, str], Principal]:
    """A dependency: who pressed a button of this page's own form, if they may.

    Raises:
        Problem: 403, a form of another page, or without the scope.
    """

    def allowed(request: Request, who: Viewer, form_token: FormToken) -> Principal:
        check_form(request, form_token)
        # What is changed here is written into the audit log like any other change.
        request.state.principal = who
        return _demand(who, scope)

    return allowed


def _demand(who: Principal, scope: str) -> Principal:
    if not who.may(scope):
        raise Problem("insufficient_scope", f"This needs the scope {scope}.")
    return who


JobsActor = Annotated[Principal, Depends(acting("jobs:write"))]
ModelsViewer = Annotated[Principal, Depends(looking("models:read"))]
ModelsActor = Annotated[Principal, Depends(acting("models:write"))]
FilesActor = Annotated[Principal, Depends(acting("files:write"))]
AdminViewer = Annotated[Principal, Depends(looking("admin"))]
AdminActor = Annotated[Principal, Depends(acting("admin"))]


def redirect_to_sign_in(request: Request, _error: Exception) -> Response:
    """To the form and back; a part of a page that is being refreshed makes the whole page go."""
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
    target = request.url.path if request.method == "GET" else "/"
    if target != "/" and request.url.query:
        target = f"{target}?{request.url.query}"
    return RedirectResponse(f"/sign-in?next={quote(target, safe='/')}", 303)


def show(
    request: Request, template: str, context: Mapping[str, Any], *, status: int = 200
) -> Response:
    """A page, or the part of one, of this moment."""
    response: Response = request.app.state.templates.TemplateResponse(
        request, template, dict(context), status
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def read_fields(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The fields of a form, judged as the API judges a body.

    Raises:
        RequestValidationError: they are not valid.
    """
    return parse_body(model, json.dumps(values).encode()).value


def go(path: str) -> Response:
    """To another page after a form was taken."""
    return RedirectResponse(path, 303)

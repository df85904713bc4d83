"""Signing in with an API key, and out."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from api.deps import Principal, principal_of, signed_in
from api.errors import Problem
from api.known_keys import KnownKeys
from api.sessions import FORM_COOKIE, SESSION_COOKIE, SESSION_SECONDS, SessionSigner
from registry.errors import InvalidApiKey

router = APIRouter()

FormToken = Annotated[str, Form(max_length=200)]
NextPath = Annotated[str, Query(max_length=500)]


def check_form(request: Request, token: str) -> None:
    """Refuse a form that this browser was not shown.

    Raises:
        Problem: 403 `csrf_failed`.
    """
    signer: SessionSigner = request.app.state.signer
    cookies = (request.cookies.get(name, "") for name in (SESSION_COOKIE, FORM_COOKIE))
    if not any(signer.form_is_ours(cookie, token) for cookie in cookies):
        raise Problem("csrf_failed", "The form was not sent from this page; load it again.")


@router.get("/sign-in")
def show_sign_in(request: Request, next: NextPath = "/") -> Response:  # noqa: A002
    """The form, and the cookie that its token is bound to."""
    return _form(request, next_path=next)


@router.post("/sign-in")
def sign_in(
    request: Request,
    api_key: Annotated[str, Form(max_length=200)],
    form_token: FormToken,
    next: Annotated[str, Form(max_length=500)] = "/",  # noqa: A002
) -> Response:
    """A session for the key, or the form again with what was wrong."""
    check_form(request, form_token)
    who = _holder(request, api_key.strip())
    if who is None:
        return _form(request, next_path=next, wrong="This is not a valid API key.", status=401)
    response = RedirectResponse(local_path(next), 303)
    signer: SessionSigner = request.app.state.signer
    _set_cookie(request, response, SESSION_COOKIE, signer.issue(who.key_id))
    return response


def _holder(request: Request, api_key: str) -> Principal | None:
    try:
        keys: KnownKeys = request.app.state.known_keys
        return principal_of(keys.look_up(api_key))
    except InvalidApiKey:
        return None


@router.post("/sign-out")
def sign_out(request: Request, form_token: FormToken) -> Response:
    """Forget the session in this browser."""
    check_form(request, form_token)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return response


def _form(
    request: Request, *, next_path: str, wrong: str | None = None, status: int = 200
) -> Response:
    request.state.form_cookie = request.cookies.get(FORM_COOKIE) or secrets.token_hex(16)
    context = {"next_path": local_path(next_path), "wrong": wrong}
    response: Response = request.app.state.templates.TemplateResponse(
        request, "sign_in.html", context, status
    )
    _set_cookie(request, response, FORM_COOKIE, request.state.form_cookie)
    return response


def _set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    response.set_cookie(
        name,
        value,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def local_path(path: str) -> str:
    """The path if it stays on this host, else the start page."""
    stays = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if stays and "\\" not in path else "/"


def viewer_of(request: Request) -> Principal | None:
    """Who is signed in to the dashboard."""
    cookie = request.cookies.get(SESSION_COOKIE)
    return signed_in(request, cookie) if cookie else None

"""Every error the API answers, as one `application/problem+json` (RFC 9457).

Routes raise and hold no `try`: domain errors of the registry and the library, `Problem` for what
only HTTP knows, and the framework's own errors all end in `install_error_handlers`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.openapi import allowed_methods
from pruning.errors import PruningError, TargetUnreachable
from registry.db import is_full
from registry.errors import (
    CredentialNotUsable,
    FileNotUsable,
    InvalidTransition,
    QuotaExceeded,
    RegistryError,
)
from registry.outbound import ForbiddenUrl

logger = logging.getLogger(__name__)

TITLES: Mapping[str, tuple[int, str]] = {
    "malformed_json": (400, "The body is not JSON"),
    "bad_cursor": (400, "The cursor is not one of this list"),
    "bad_request": (400, "The request cannot be understood"),
    "missing_key": (401, "An API key is needed"),
    "invalid_key": (401, "The API key is not valid"),
    "expired_key": (401, "The API key has expired"),
    "insufficient_scope": (403, "The API key may not do this"),
    "invalid_signature": (401, "The signed URL is not valid"),
    "expired_signature": (401, "The signed URL has expired"),
    "csrf_failed": (403, "The form was not sent from this page"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "not_acceptable": (406, "Not acceptable"),
    "invalid_state": (409, "Not possible in the present state"),
    "idempotency_conflict": (409, "The idempotency key cannot be used"),
    "idempotency_in_progress": (409, "The same request is still being answered"),
    "checkpoint_deleted": (410, "The checkpoint was deleted"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "Unsupported media type"),
    "range_not_satisfiable": (416, "The range lies outside the file"),
    "validation_error": (422, "The request is not valid"),
    "idempotency_key_reuse": (422, "The idempotency key was used for another request"),
    "url_forbidden": (422, "The address may not be called"),
    "path_forbidden": (422, "The path is outside the allowed roots"),
    "model_unavailable": (422, "The model's configuration cannot be read from here"),
    "already_exists": (409, "The name is taken"),
    "version_mismatch": (412, "It has changed since you looked"),
    "precondition_required": (428, "Say which state you know"),
    "gate_not_passed": (409, "The version is not good enough"),
    "key_not_active": (409, "The API key is not active"),
    "rate_limited": (429, "Too many requests"),
    "quota_jobs": (429, "Too many jobs"),
    "quota_storage": (429, "Too much is stored"),
    "file_in_use": (409, "A job that has not ended reads this file"),
    "offset_mismatch": (409, "The upload stands at another place"),
    "upload_in_progress": (409, "Another request is writing to this upload"),
    "upload_complete": (409, "The upload has ended"),
    "credential_not_usable": (422, "The credential cannot be used"),
    "file_not_usable": (422, "The file cannot be used"),
    "checksum_mismatch": (422, "What arrived is not what was announced"),
    "internal": (500, "Internal error"),
    "storage_error": (500, "The artifact store failed"),
    "checkpoint_corrupt": (500, "A stored file is damaged"),
    "database_unavailable": (503, "The database cannot be reached"),
    "storage_full": (507, "No space is left to store it"),
}
"""The codes of this API with their status and title; a code of the pruning library is a 422."""

_CODE_BY_STATUS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "unsupported_media_type",
}
_RETRYABLE = frozenset(
    {"idempotency_in_progress", "storage_full", "storage_error", "quota_jobs", "quota_storage"}
)
_RETRY_AFTER_SECONDS = 2
_QUOTA_RETRY_SECONDS = 60
PROBLEM_JSON = "application/problem+json"


class Problem(Exception):
    """An answer other than success: its code decides status and title."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.param = param
        self.errors = errors
        self.retryable = retryable
        self.headers = dict(headers or {})
        self.extensions = dict(extensions or {})

    @property
    def status(self) -> int:
        return TITLES.get(self.code, (422, ""))[0]

    @property
    def title(self) -> str:
        return TITLES.get(self.code, (422, self.code.replace("_", " ").capitalize()))[1]


def problem_response(request: Request, problem: Problem) -> Response:
    """The problem as a response; browsers that asked for a page get one."""
    request_id = getattr(request.state, "request_id", "")
    headers = {"X-Request-Id": request_id, **problem.headers}
    if problem.status == 401:
        headers.setdefault("WWW-Authenticate", "Bearer")
    if _wants_page(request):
        page: Response = request.app.state.templates.TemplateResponse(
            request, "error.html", {"problem": problem, "request_id": request_id}, problem.status
        )
        page.headers.update(headers)
        return page
    body = {
        "type": f"urn:espalier:error:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.url.path,
        "code": problem.code,
        "param": problem.param,
        "errors": list(problem.errors),
        "retryable": problem.retryable,
        "request_id": request_id,
        **problem.extensions,
    }
    return JSONResponse(body, problem.status, headers, media_type=PROBLEM_JSON)


def _wants_page(request: Request) -> bool:
    is_api = request.url.path.startswith("/v1/")
    return not is_api and "text/html" in request.headers.get("accept", "")


def from_validation_errors(errors: Sequence[Any]) -> Problem:
    """One problem for all that is wrong with a request; `param` is the first field at fault."""
    if any(error["type"] == "json_invalid" for error in errors):
        reason = errors[0].get("ctx", {}).get("error", errors[0]["msg"])
        return Problem("malformed_json", f"The body is not valid JSON: {reason}")
    described = [
        {"param": param_of(error["loc"]), "code": error["type"], "message": error["msg"]}
        for error in errors
    ]
    first = described[0]
    return Problem(
        "validation_error",
        f"{first['param'] or 'request'}: {first['message']}",
        param=first["param"],
        errors=described,
    )


def param_of(location: Sequence[str | int]) -> str | None:
    """`("body", "target", "num_parameters")` as `target.num_parameters`."""
    parts = location[1:] if location and location[0] in _PLACES else location
    return ".".join(map(str, parts)) or None


_PLACES = frozenset({"body", "query", "path", "header", "cookie"})


def from_http_exception(request: Request, error: HTTPException) -> Problem:
    """The framework's own refusals: unknown paths, methods, bodies over the limit."""
    code = _CODE_BY_STATUS.get(error.status_code, "internal")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        methods = allowed_methods(request.app, request.url.path)
        headers["Allow"] = ", ".join(methods) or headers.get("Allow", headers.get("allow", ""))
        headers.pop("allow", None)
        return Problem(code, f"{request.method} is not offered here", headers=headers)
    return Problem(code, str(error.detail), headers=headers)


def from_registry_error(error: RegistryError) -> Problem:
    """What the registry refuses; its code is the answer's."""
    if isinstance(error, InvalidTransition):
        extensions = {"allowed_actions": [str(action) for action in error.allowed_actions]}
        return Problem("invalid_state", error.message, extensions=extensions)
    retryable = error.code in _RETRYABLE
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if retryable else {}
    param = (
        error.param
        if isinstance(error, FileNotUsable | CredentialNotUsable | ForbiddenUrl)
        else None
    )
    if isinstance(error, QuotaExceeded):
        headers["Retry-After"] = str(_QUOTA_RETRY_SECONDS)
    return Problem(error.code, error.message, param=param, retryable=retryable, headers=headers)


def from_pruning_error(error: PruningError) -> Problem:
    """What the library refuses about a recipe."""
    extensions = {"hint": error.hint} if error.hint else {}
    errors = []
    if isinstance(error, TargetUnreachable) and error.limit is not None:
        said = {"param": error.param, "code": error.code, "message": error.message}
        errors.append({**said, "limit": error.limit})
    return Problem(
        error.code, error.message, param=error.param, errors=errors, extensions=extensions
    )


def from_database_error(error: DBAPIError | PoolTimeout) -> Problem:
    """The database is away, or full; the request may be repeated as it is."""
    logger.warning("database unavailable: %s", error)
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
    if isinstance(error, DBAPIError) and is_full(error):
        detail = "The database finds no space; nothing was changed."
        return Problem("storage_full", detail, retryable=True, headers=headers)
    detail = "The database did not answer; nothing was changed."
    return Problem("database_unavailable", detail, retryable=True, headers=headers)


def from_unexpected(_error: Exception) -> Problem:
    """A fault of ours; the server's log has the rest."""
    detail = "Something went wrong on our side; the request id finds it in the server's log."
    return Problem("internal", detail)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of every route, and of no route, as a problem."""
    translations: Sequence[tuple[type[Exception], Callable[[Any], Problem]]] = (
        (Problem, lambda problem: problem),
        (RequestValidationError, lambda error: from_validation_errors(error.errors())),
        (RegistryError, from_registry_error),
        (PruningError, from_pruning_error),
        (OperationalError, from_database_error),
        (InterfaceError, from_database_error),
        (PoolTimeout, from_database_error),
        (Exception, from_unexpected),
    )
    for kind, translate in translations:
        app.add_exception_handler(kind, _handler(translate))

    def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(request, from_http_exception(request, error))

    app.add_exception_handler(HTTPException, framework)


def _handler(translate: Callable[[Any], Problem]) -> Callable[[Request, Exception], Response]:
    def handle(request: Request, error: Exception) -> Response:
        return problem_response(request, translate(error))

    return handle

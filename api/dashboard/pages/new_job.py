"""Making a job: the form, what it would lead to, and the job."""

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.answer_once import answer_once
from api.bodies import Body, parse_body
from api.dashboard.form_fields import GROUPS, METHODS, TARGET_UNITS
from api.dashboard.job_form import Filled, fill, owner_of, read_form, request_of
from api.dashboard.snippets import Snippet, snippets
from api.dashboard.viewing import JobsActor, Viewer, go, show
from api.deps import ModelConfigsDep, Principal, ReadSession, SettingsDep, StoreDep
from api.errors import Problem, from_pruning_error, from_registry_error, from_validation_errors
from api.estimates import file_sizes, foretell, model_token
from api.model_configs import ModelConfigs
from api.own_text import with_own_text
from api.paths import refuse_forbidden_paths
from api.routes.data import preview_data
from api.routes.estimates import create_estimate
from api.routes.jobs import create_queued
from api.schemas.data import DataPreviewRead, DataPreviewRequest
from api.schemas.estimates import EstimateRead
from api.schemas.jobs import JobCreate
from pruning.errors import PruningError
from registry import files, jobs, outbound
from registry.db import reading
from registry.errors import RegistryError
from registry.settings import Settings
from registry.storage import ArtifactStore
from registry.tables import Job
from registry.tenancy import transaction_of

router = APIRouter(prefix="/jobs/new")
create_router = APIRouter()

_MAX_SUGGESTIONS = 100
_ONCE_FIELD = "once"


async def form_pairs(request: Request) -> list[tuple[str, str]]:
    """The text fields of a posted form, in their order."""
    form = await request.form()
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


FormPairs = Annotated[list[tuple[str, str]], Depends(form_pairs)]


@dataclass(frozen=True)
class Asked:
    """What a request of this page needs: who, and where to look things up."""

    request: Request
    who: Principal
    settings: Settings
    configs: ModelConfigs
    store: ArtifactStore


def asked(
    request: Request,
    who: JobsActor,
    settings: SettingsDep,
    configs: ModelConfigsDep,
    store: StoreDep,
) -> Asked:
    """The form's sender and this process's parts."""
    return Asked(request, who, settings, configs, store)


AskedDep = Annotated[Asked, Depends(asked)]


@router.get("")
def new_job_page(
    request: Request,
    who: Viewer,
    session: ReadSession,
    settings: SettingsDep,
    like: Annotated[str | None, Query(max_length=64)] = None,
    data: Annotated[str, Query(max_length=4096)] = "",
) -> Response:
    """The form: empty, naming a text, or as an earlier job was asked for."""
    filled = Filled(values={"data": data})
    if like is not None:
        filled = fill(jobs.get(session, who.tenant_id, like).spec)
    return show(request, "new_job.html", _context(session, who, settings, filled))


@router.post("/estimate")
def estimate_form(asked: AskedDep, pairs: FormPairs) -> Response:
    """What the form would lead to: the part of the page, or without JavaScript the whole page."""
    filled, found, problem = read_form(pairs), None, None
    if filled.values.get("model", "").strip():
        try:
            with _telling():
                found = _estimate(asked, filled)
        except Problem as error:
            problem = error
    context = {"estimate": found, "problem": problem, "snippets": _elsewhere(asked, filled)}
    return _part(asked, filled, pairs, "_estimate.html", context)


@router.post("/preview")
def preview_form(asked: AskedDep, pairs: FormPairs) -> Response:
    """The beginning of the text that the form names, in the same way."""
    filled, found, problem = read_form(pairs), None, None
    try:
        with _telling():
            found = _preview(asked, filled)
    except Problem as error:
        problem = error
    context = {"preview": found, "preview_problem": problem}
    return _part(asked, filled, pairs, "_preview.html", context)


def _part(
    asked: Asked,
    filled: Filled,
    pairs: list[tuple[str, str]],
    template: str,
    context: dict[str, Any],
) -> Response:
    if "hx-request" in asked.request.headers:
        return show(asked.request, template, context)
    with reading(asked.request.app.state.sessions) as session:
        page = _context(session, asked.who, asked.settings, filled, pairs)
    return show(asked.request, "new_job.html", page | context)


@create_router.post("/jobs")
def create_from_form(asked: AskedDep, pairs: FormPairs) -> Response:
    """The job, or the form again with the API's own words on what was wrong."""
    filled = read_form(pairs)
    try:
        with _telling():
            return go(f"/jobs/{_create(asked, filled, dict(pairs).get(_ONCE_FIELD))}")
    except Problem as problem:
        filled = replace(filled, errors=_by_field(problem))
        with reading(asked.request.app.state.sessions) as session:
            context = _context(session, asked.who, asked.settings, filled, pairs)
        return show(asked.request, "new_job.html", context, status=problem.status)


@contextmanager
def _telling() -> Iterator[None]:
    """Turn what the API refuses with into its problem."""
    try:
        yield
    except RequestValidationError as error:
        raise from_validation_errors(error.errors()) from error
    except PruningError as error:
        raise from_pruning_error(error) from error
    except RegistryError as error:
        raise from_registry_error(error) from error


def _request(filled: Filled, *, without_data: bool = False) -> dict[str, Any]:
    try:
        return request_of(filled, without_data=without_data)
    except ValueError as error:
        raise Problem("validation_error", str(error), param="extra") from None


def _body(filled: Filled, *, without_data: bool = False) -> Body[JobCreate]:
    written = _request(filled, without_data=without_data)
    return parse_body(JobCreate, json.dumps(written).encode())


def _estimate(asked: Asked, filled: Filled) -> EstimateRead:
    if not filled.values.get("target", "").strip():
        # A size that every model can have: what is shown of it is the model and its floor.
        filled = replace(filled, values={**filled.values, "target": "0%", "target_unit": ""})
    body = _body(filled, without_data=True)
    return create_estimate(asked.request, asked.who, body, asked.settings, asked.configs)


def _elsewhere(asked: Asked, filled: Filled) -> list[Snippet]:
    """What is written so far, as a request to send from elsewhere; nothing before it is one."""
    try:
        request = request_of(filled)
    except ValueError:
        return []
    whole = all(name in request for name in ("model", "target", "data"))
    return snippets(str(asked.request.base_url), request) if whole else []


def _preview(asked: Asked, filled: Filled) -> DataPreviewRead:
    request = _request(filled)
    wanted = {name: request[name] for name in ("data", "model") if request.get(name)}
    body = parse_body(DataPreviewRequest, json.dumps(wanted).encode())
    return preview_data(asked.request, asked.who, body, asked.settings, asked.store)


def _create(asked: Asked, filled: Filled, once: str | None) -> str:
    sessions = asked.request.app.state.sessions
    body = with_own_text(sessions, asked.who, _body(filled))
    refuse_forbidden_paths(body.value, asked.settings)
    if body.value.webhook is not None:
        hosts = asked.settings.webhook_private_hosts
        outbound.parse(body.value.webhook.url, hosts, "webhook.url")
    recipe = body.value.recipe
    token = model_token(sessions, asked.who, recipe, asked.settings)
    sizes = file_sizes(sessions, asked.who, recipe)
    foretold = foretell(recipe, asked.configs, sizes, token=token)
    tenant_id = asked.who.tenant_id
    with transaction_of(sessions, tenant_id) as session:
        answer = answer_once(
            session,
            tenant_id=tenant_id,
            key=_once_key(once, body.written),
            path="/jobs",
            written=body.written,
            create=partial(create_queued, session, tenant_id, body, foretold),
        )
    return str(answer.body["id"])


def _once_key(once: str | None, written: dict[str, Any]) -> str | None:
    """A form that is sent twice makes one job; one that was gone back to and changed, another."""
    if not once:
        return None
    digest = hashlib.sha256(json.dumps([once, written]).encode()).hexdigest()
    return f"form-{digest}"


def _by_field(problem: Problem) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for error in problem.errors:
        name = owner_of(error["param"])
        rest = (error["param"] or "").removeprefix(name).lstrip(".")
        message = f"{rest}: {error['message']}" if rest else str(error["message"])
        said.setdefault(name, []).append(message)
    if not said:
        said[owner_of(problem.param)] = [str(problem)]
    hint = problem.extensions.get("hint")
    if hint:
        next(iter(said.values())).append(str(hint))
    return said


def _context(
    session: Session,
    who: Principal,
    settings: Settings,
    filled: Filled,
    pairs: list[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    errors = filled.errors
    return {
        "filled": filled,
        "values": defaultdict(str, filled.values),
        "groups": GROUPS,
        "advanced_open": any(name in errors for group in GROUPS for name in _names(group.fields)),
        "methods": METHODS,
        "units": TARGET_UNITS,
        "models": _models(session, who, settings),
        "uploads": files.list_page(session, who.tenant_id, limit=50).items,
        "once": dict(pairs or []).get(_ONCE_FIELD) or secrets.token_hex(16),
        "roots": [str(root) for root in settings.allowed_paths],
        "estimate": None,
        "problem": None,
        "snippets": [],
        "preview": None,
        "preview_problem": None,
    }


def _names(fields: Any) -> list[str]:
    return [one.name for one in fields]


def _models(session: Session, who: Principal, settings: Settings) -> list[str]:
    """Models to pick from: those of earlier jobs, and those that lie on this disk."""
    query = (
        select(Job.model)
        .where(Job.tenant_id == who.tenant_id)
        .group_by(Job.model)
        .order_by(func.max(Job.created_at).desc())
        .limit(_MAX_SUGGESTIONS)
    )
    return list(dict.fromkeys([*session.scalars(query), *_on_disk(settings)]))[:_MAX_SUGGESTIONS]


def _on_disk(settings: Settings) -> Iterator[str]:
    for root in settings.allowed_paths:
        for pattern in ("config.json", "*/config.json", "*.gguf", "*/*.gguf"):
            for path in sorted(Path(root).glob(pattern))[:_MAX_SUGGESTIONS]:
                yield str(path.parent if path.name == "config.json" else path)

"""Templates, the words and units in them, and the static files."""

import json
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from api.dashboard import units
from api.dashboard.build import missing_files
from api.dashboard.wording import sentence
from api.schemas.jobs import JobRead
from api.sessions import FORM_COOKIE, SESSION_COOKIE

HERE = Path(__file__).parent
STATIC = HERE / "static"


def build_templates() -> Jinja2Templates:
    """The templates, escaping everything, with the filters below."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=units.count,
        exact=units.exact,
        size=units.size,
        duration=units.duration,
        decimal=units.decimal,
        figure=units.figure,
        percent=units.percent,
        moment=units.moment,
        clock=units.clock,
        sentence=sentence,
        pretty=_pretty,
        model_name=_model_name,
    )
    templates = Jinja2Templates(env=environment, context_processors=[_page_context])
    templates.env.globals["missing_files"] = missing_files
    return templates


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _model_name(job: JobRead) -> str:
    """The base model as jobs name it: a repository, or a path on the worker's disk."""
    model: Any = job.resolved["recipe"]
    return str(model["model"].get("id") or model["model"].get("path"))


def _page_context(request: Request) -> dict[str, Any]:
    cookies = request.cookies
    cookie = getattr(request.state, "form_cookie", None) or cookies.get(
        SESSION_COOKIE, cookies.get(FORM_COOKIE, "")
    )
    who = getattr(request.state, "viewer", None)
    return {
        "form_token": request.app.state.signer.form_token(cookie),
        "signed_in": who is not None,
        "may": (lambda _scope: False) if who is None else who.may,
    }

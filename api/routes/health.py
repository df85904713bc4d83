"""Is this process alive, can it serve, what is it."""

import platform
from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from api.openapi import problems
from api.readiness import (
    check_artifacts,
    check_broker,
    check_database,
    check_migrations,
    check_worker,
    run_checks,
    worst_of,
)
from api.schemas.operations import Health, Readiness, Version

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Alive", responses=problems(422))
def healthz() -> Health:
    """This process answers; nothing else is asked."""
    return Health()


@router.get("/version", summary="Version", responses=problems(422))
def read_version() -> Version:
    """What is running here."""
    return Version(version=version("espalier"), python=platform.python_version())


@router.get(
    "/readyz",
    response_model=Readiness,
    summary="Ready",
    responses={503: {"model": Readiness, "description": "A check failed."}, **problems(422)},
)
def readyz(request: Request) -> JSONResponse:
    """Each thing this process needs. Without a live worker it is degraded: jobs wait."""
    state = request.app.state
    checks = run_checks(
        {
            "database": lambda: check_database(state.engine),
            "migrations": lambda: check_migrations(state.engine),
            "artifacts": lambda: check_artifacts(state.store),
            "broker": lambda: check_broker(state.sessions),
            "worker": lambda: check_worker(state.sessions, state.settings),
        },
        seconds=state.api_settings.readiness_seconds,
    )
    worst = worst_of(checks)
    body = Readiness(status=worst, checks=checks).model_dump(mode="json")
    return JSONResponse(body, 503 if worst == "failed" else 200, {"Cache-Control": "no-store"})


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """For Prometheus. It names no tenant; keep it inside all the same."""
    text = request.app.state.metrics.render()
    return Response(text, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})

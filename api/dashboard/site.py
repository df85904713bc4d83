"""The dashboard as a whole: its pages and its static files, put into the application."""

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware

from api.dashboard import sign_in, viewing
from api.dashboard.pages import (
    admin,
    compare,
    frontier,
    job,
    jobs,
    models,
    new_job,
    overview,
    playground,
    uploads,
)
from api.dashboard.rendering import STATIC, build_templates
from api.queries import only_known_query

ROUTERS = (
    *(sign_in.router, overview.router, new_job.router, new_job.create_router),
    *(playground.router, uploads.router),
    *(jobs.router, job.router, compare.router, frontier.router, models.router, admin.router),
)
"""In the order in which their paths are tried: `/jobs/new` before `/jobs/{job_id}`."""


def install_dashboard(app: FastAPI) -> None:
    """Give the application its pages."""
    app.state.templates = build_templates()
    for router in ROUTERS:
        app.include_router(
            router, include_in_schema=False, dependencies=[Depends(only_known_query)]
        )
    # The files are the same for everyone, so that compressing them gives nothing away; pages,
    # which hold form tokens, are not compressed.
    app.mount("/static", GZipMiddleware(StaticFiles(directory=STATIC), minimum_size=500))
    app.add_exception_handler(viewing.SignInNeeded, viewing.redirect_to_sign_in)

"""The HTTP process: `uvicorn --factory api.main:create_app`."""

import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from types import FrameType

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from api.auditing import Auditing
from api.dashboard.site import install_dashboard
from api.errors import install_error_handlers
from api.known_keys import KnownKeys
from api.metrics import Measured, Metrics
from api.middleware import BodyLimit, ResponseHeaders
from api.model_configs import ModelConfigs
from api.openapi import install_openapi
from api.queries import only_known_query
from api.rate_limits import RateLimiter
from api.routes import (
    api_keys,
    attempts,
    audit,
    checkpoints,
    comparisons,
    credentials,
    data,
    estimates,
    files,
    health,
    jobs,
    models,
    progress,
    provenance,
    steering,
    usage,
    webhooks,
)
from api.schemas.api_keys import ApiKeyCreate, ApiKeyRotate
from api.schemas.base import ProblemRead
from api.schemas.checkpoints import DownloadUrlRequest
from api.schemas.credentials import CredentialCreate
from api.schemas.data import DataPreviewRequest
from api.schemas.jobs import JobCreate, JobUpdate, PauseRequest
from api.schemas.models import AliasPut, ModelCreate, VersionCreate
from api.schemas.webhooks import SecretRotate, WebhookCreate, WebhookUpdate
from api.sessions import load_signer
from api.settings import ApiSettings
from api.tracing import Traced
from api.watching import JobWatcher
from registry import logs, tracing
from registry.db import create_engine, session_factory
from registry.settings import Settings
from registry.storage import store_for

ROUTES = (
    *(jobs, steering, progress, attempts, estimates, checkpoints, files, data),
    *(models, comparisons, api_keys, credentials, webhooks, usage, audit),
    provenance,
)
BODIES: tuple[type[BaseModel], ...] = (
    *(ApiKeyCreate, ApiKeyRotate, CredentialCreate, DataPreviewRequest, DownloadUrlRequest),
    *(JobCreate, JobUpdate, PauseRequest),
    *(AliasPut, ModelCreate, VersionCreate),
    *(SecretRotate, WebhookCreate, WebhookUpdate),
    ProblemRead,
)
"""Models that routes read, or errors answer, by themselves."""
DESCRIPTION = "Name a model, a size and your text; get back a smaller, trained, evaluated model."


def create_app(
    settings: Settings | None = None, api_settings: ApiSettings | None = None
) -> FastAPI:
    """The application; settings come from the environment unless given."""
    limits = api_settings or ApiSettings()
    app = FastAPI(
        title="Espalier",
        version=version("espalier"),
        description=DESCRIPTION,
        # The pages of these load scripts from another host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        separate_input_output_schemas=False,
    )
    _open(app, settings or Settings(), limits)
    for router in (jobs.direct, *(routes.router for routes in ROUTES)):
        # Not included: a router in a router looks for the route twice, in front of every request.
        app.router.routes.extend(router.routes)
    app.include_router(health.router, dependencies=[Depends(only_known_query)])
    install_dashboard(app)
    app.add_middleware(
        BodyLimit, max_bytes=limits.max_body_bytes, max_upload_bytes=limits.max_upload_bytes
    )
    app.add_middleware(Measured, metrics=app.state.metrics)
    app.add_middleware(Auditing)
    app.add_middleware(ResponseHeaders)
    app.add_middleware(Traced)
    install_error_handlers(app)
    install_openapi(app, models=BODIES)
    return app


def _open(app: FastAPI, settings: Settings, api_settings: ApiSettings) -> None:
    """Everything a request may need, made once; nothing connects before it is used."""
    given = api_settings.session_secret
    app.state.settings = settings
    app.state.api_settings = api_settings
    app.state.engine = create_engine(settings)
    app.state.sessions = session_factory(app.state.engine)
    app.state.known_keys = KnownKeys(app.state.sessions)
    app.state.metrics = Metrics(app.state.sessions)
    app.state.store = store_for(settings.artifacts_url)
    app.state.signer = load_signer(
        settings.data_dir, given.get_secret_value() if given is not None else None
    )
    app.state.limiter = RateLimiter(
        per_second=api_settings.rate_limit_per_second, burst=api_settings.rate_limit_burst
    )
    app.state.model_configs = ModelConfigs(settings, hub_seconds=api_settings.hub_seconds)
    app.state.stopping = threading.Event()
    app.state.watcher = JobWatcher(
        app.state.sessions,
        poll_seconds=api_settings.poll_seconds,
        stopping=app.state.stopping,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if not logging.getLogger().handlers:
        logs.configure(app.state.settings.log_format)
    tracing.configure("espalier-api")
    _keep_what_is_there()
    with _noticing_signals(app.state.stopping):
        yield
    app.state.stopping.set()
    app.state.engine.dispose()


def _keep_what_is_there() -> None:
    """Let the garbage collector never look through modules, routes and models again.

    They are hundreds of thousands of objects, and while it looks no request goes on. Only where the
    process is the server's: what a test makes must be collected.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()


@contextmanager
def _noticing_signals(stopping: threading.Event) -> Iterator[None]:
    """End event streams at once on a signal: the server waits for them before its shutdown."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def notice(number: int, frame: FrameType | None) -> None:
        stopping.set()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in before:
        signal.signal(number, notice)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

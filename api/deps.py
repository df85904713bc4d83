"""What routes are given: a session, the artifact store, and who asks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy.orm import Session

from api.errors import Problem
from api.known_keys import KnownKeys
from api.model_configs import ModelConfigs
from api.queries import refuse_unknown_query
from api.sessions import SESSION_COOKIE, SessionSigner
from api.signed_urls import verify_download
from registry.db import database_now, reading
from registry.settings import Settings
from registry.storage import ArtifactStore
from registry.tables import ApiKey
from registry.tenancy import reading_of, transaction_of

# Together fewer than the connections of an engine: 15 on SQLite, 30 on Postgres.
_MAX_READING, _MAX_WRITING = 8, 4
_SAFE_METHODS = frozenset({"GET", "HEAD"})


def write_session(request: Request) -> Iterator[Session]:
    """One transaction around the route, in which only the tenant's rows are there."""
    with transaction_of(request.app.state.sessions, _tenant_of(request)) as session:
        yield session


def read_session(request: Request) -> Iterator[Session]:
    """A snapshot of the tenant's rows; on SQLite it does not queue behind writers."""
    with reading_of(request.app.state.sessions, _tenant_of(request)) as session:
        yield session


def _tenant_of(request: Request) -> str:
    """Whose request it is: routes name who asks before they name a session."""
    state = request.state
    who: Principal = state.principal if hasattr(state, "principal") else state.viewer
    return who.tenant_id


# With the default scope the commit would follow the answer, and one that fails would be a 201.
# A session is begun, used and ended in a thread each time. Were there more than connections, those
# that wait for one could take every thread, and who has one could not go on and give it back.
WriteSession = Annotated[
    Session, Depends(write_session, scope="function", max_concurrency=_MAX_WRITING)
]
ReadSession = Annotated[
    Session, Depends(read_session, scope="function", max_concurrency=_MAX_READING)
]


# Of these, none waits for anything; one that is not `async` would be run in a thread of its own.


async def artifact_store(request: Request) -> ArtifactStore:
    """The store that this process was started with."""
    store: ArtifactStore = request.app.state.store
    return store


async def settings_of(request: Request) -> Settings:
    """The settings that this process was started with."""
    settings: Settings = request.app.state.settings
    return settings


async def model_configs_of(request: Request) -> ModelConfigs:
    """Where this process looks up the configurations of models."""
    configs: ModelConfigs = request.app.state.model_configs
    return configs


ModelConfigsDep = Annotated[ModelConfigs, Depends(model_configs_of)]
StoreDep = Annotated[ArtifactStore, Depends(artifact_store)]
SettingsDep = Annotated[Settings, Depends(settings_of)]


@dataclass(frozen=True)
class Principal:
    """Who asks, and what they may do."""

    key_id: str
    tenant_id: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def principal_of(key: ApiKey) -> Principal:
    """Who holds this key."""
    return Principal(key_id=key.id, tenant_id=key.tenant_id, scopes=frozenset(key.scopes))


class _ByKey(SecurityBase):
    """Who asks: by API key, or, to read only, by the dashboard's session.

    A security scheme itself, and not a dependency that has one: it is solved for every request.
    """

    scheme_name = "apiKey"
    model = HTTPBearer(description="An API key: `Authorization: Bearer pk_…`.")

    async def __call__(self, request: Request, needed: SecurityScopes) -> Principal:
        """The holder of the key, counted against its rate.

        Raises:
            Problem: 401 without a valid key, 403 when the key lacks a scope, 429 when too many,
                422 for a query parameter that is not offered.
        """
        # Here and not beside it: each dependency more is a twentieth of what reading a job costs.
        refuse_unknown_query(request)
        authorization = request.headers.get("authorization")
        if authorization is None:
            who = await run_in_threadpool(by_session, request)
        else:
            who = await _by_key(request, authorization)
        if who is None:
            raise Problem("missing_key", "Send `Authorization: Bearer pk_…`.")
        request.state.principal = who
        request.state.rate_limit = request.app.state.limiter.take(who.key_id)
        for scope in needed.scopes:
            if not who.may(scope):
                raise Problem("insufficient_scope", f"This needs the scope {scope}.")
        return who


principal = _ByKey()


async def _by_key(request: Request, authorization: str) -> Principal:
    scheme, secret = get_authorization_scheme_param(authorization)
    if scheme.lower() != "bearer" or not secret:
        raise Problem("invalid_key", "The Authorization header must read `Bearer pk_…`.")
    keys: KnownKeys = request.app.state.known_keys
    known = keys.recall(secret)
    return principal_of(await run_in_threadpool(keys.look_up, secret) if known is None else known)


def by_session(request: Request) -> Principal | None:
    """Who is signed in to the dashboard; here only to read, since writing needs a form token."""
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie is None or request.method not in _SAFE_METHODS:
        return None
    return signed_in(request, cookie)


def signed_in(request: Request, cookie: str) -> Principal | None:
    """The principal of a session cookie, while its API key is valid."""
    signer: SessionSigner = request.app.state.signer
    key_id = signer.key_id_of(cookie)
    return None if key_id is None else _by_key_id(request, key_id)


def _by_key_id(request: Request, key_id: str) -> Principal | None:
    with reading(request.app.state.sessions) as session:
        key = session.get(ApiKey, key_id)
        if key is None or key.revoked_at is not None:
            return None
        over = key.expires_at is not None and key.expires_at <= database_now(session)
        return None if over else principal_of(key)


class _BySignature(_ByKey):
    """Who downloads: by API key, session, or the signature of a URL."""

    async def __call__(
        self,
        request: Request,
        needed: SecurityScopes,
        signature: Annotated[
            str | None,
            Query(description="Instead of an API key, as `…/download-url` has made it."),
        ] = None,
    ) -> Principal:
        """The holder of the key, also of the one that signed.

        Raises:
            Problem: 401 when the signature is not of this URL, or over.
        """
        if signature is None:
            return await super().__call__(request, needed)
        refuse_unknown_query(request)
        signer: SessionSigner = request.app.state.signer
        key_id = verify_download(signer, request.url, signature)
        who = await run_in_threadpool(_by_key_id, request, key_id)
        if who is None or not all(map(who.may, needed.scopes)):
            raise Problem("invalid_signature", "The API key that signed this URL is not valid now.")
        request.state.principal = who
        return who


downloader = _BySignature()


JobsReader = Annotated[Principal, Security(principal, scopes=["jobs:read"])]
JobsWriter = Annotated[Principal, Security(principal, scopes=["jobs:write"])]
JobsDeleter = Annotated[Principal, Security(principal, scopes=["jobs:delete"])]
CheckpointReader = Annotated[Principal, Security(principal, scopes=["ckpt:read"])]
Admin = Annotated[Principal, Security(principal, scopes=["admin"])]
ModelsReader = Annotated[Principal, Security(principal, scopes=["models:read"])]
ModelsWriter = Annotated[Principal, Security(principal, scopes=["models:write"])]
FilesReader = Annotated[Principal, Security(principal, scopes=["files:read"])]
FilesWriter = Annotated[Principal, Security(principal, scopes=["files:write"])]
Downloader = Annotated[Principal, Security(downloader, scopes=["ckpt:read"])]

"""API keys: `pk_<prefix>_<secret>`; the prefix finds the row, only its sha256 is stored."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.db import database_now, insert_unless_exists
from registry.errors import ExpiredApiKey, InvalidApiKey, KeyNotActive, NotFound
from registry.ids import new_id
from registry.tables import ApiKey, Tenant

SCOPES = (
    *("jobs:read", "jobs:write", "jobs:delete", "ckpt:read", "files:read", "files:write"),
    *("models:read", "models:write", "admin"),
)
DEFAULT_TENANT = "default"

_PREFIX_BYTES = 6
_SECRET_BYTES = 24  # 192 bits: guessing is hopeless, so a plain digest needs no stretching.
_FORM = re.compile(r"pk_(?P<prefix>[0-9a-f]{12})_[0-9a-f]{48}")
_USE_RECORDED_EVERY = timedelta(minutes=1)


def get_or_create_tenant(session: Session, name: str = DEFAULT_TENANT) -> Tenant:
    """The tenant of that name."""
    values = {
        "id": new_id("ten"),
        "name": name,
        "quotas": {},
        "created_at": database_now(session),
    }
    insert_unless_exists(session, Tenant, values)
    return session.scalars(select(Tenant).where(Tenant.name == name)).one()


def create(
    session: Session,
    tenant: Tenant,
    scopes: Sequence[str] = SCOPES,
    *,
    name: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown this once and never stored.

    Raises:
        ValueError: a scope does not exist.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise ValueError(f"no such scopes: {', '.join(unknown)}; there are {', '.join(SCOPES)}")
    prefix = secrets.token_hex(_PREFIX_BYTES)
    secret = f"pk_{prefix}_{secrets.token_hex(_SECRET_BYTES)}"
    row = ApiKey(
        id=new_id("key"),
        tenant_id=tenant.id,
        name=name,
        prefix=prefix,
        hash=_digest(secret),
        scopes=list(scopes),
        created_at=database_now(session),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row, secret


def authenticate(session: Session, secret: str) -> ApiKey:
    """The key that this secret opens.

    Raises:
        InvalidApiKey: it opens none, or one that was revoked.
        ExpiredApiKey: its time is over.
    """
    match = _FORM.fullmatch(secret)
    row = (
        match
        and session.scalars(select(ApiKey).where(ApiKey.prefix == match["prefix"])).one_or_none()
    )
    if not row or not hmac.compare_digest(row.hash, _digest(secret)):
        raise InvalidApiKey("this API key is not known")
    if row.revoked_at is not None:
        raise InvalidApiKey("this API key was revoked")
    if row.expires_at is not None and row.expires_at <= database_now(session):
        raise ExpiredApiKey(f"this API key expired at {row.expires_at.isoformat()}")
    return row


def record_use(session: Session, key: ApiKey) -> None:
    """Note that the key was used, at most once a minute."""
    now = database_now(session)
    if key.last_used_at is None or now - key.last_used_at >= _USE_RECORDED_EVERY:
        session.get_one(ApiKey, key.id).last_used_at = now


def list_all(session: Session, tenant_id: str) -> list[ApiKey]:
    """Every key of a tenant, oldest first."""
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    return list(session.scalars(query.order_by(ApiKey.created_at, ApiKey.id)))


def get(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """The tenant's key.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    row = session.get(ApiKey, key_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("API key", key_id)
    return row


def rotate(session: Session, key: ApiKey, *, overlap: timedelta) -> tuple[ApiKey, str]:
    """A key like this one, which itself works on for `overlap` and no longer than it would have.

    Raises:
        KeyNotActive: it does not work any more.
    """
    now = database_now(session)
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise KeyNotActive(f"{key.id} is revoked or has expired")
    tenant = session.get_one(Tenant, key.tenant_id)
    fresh = create(session, tenant, key.scopes, name=key.name, expires_at=key.expires_at)
    ends = now + overlap
    key.expires_at = ends if key.expires_at is None else min(key.expires_at, ends)
    return fresh


def revoke(session: Session, key: ApiKey) -> None:
    """Make the key worthless from now on."""
    if key.revoked_at is None:
        key.revoked_at = database_now(session)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

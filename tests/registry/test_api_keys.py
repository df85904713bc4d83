"""API keys: only the secret opens, and the secret is stored nowhere."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from registry import api_keys
from registry.db import database_now
from registry.errors import ExpiredApiKey, InvalidApiKey
from registry.tables import ApiKey, Tenant


def test_a_secret_opens_its_key(session: Session, tenant: Tenant) -> None:
    row, secret = api_keys.create(session, tenant, ["jobs:read"])
    assert api_keys.authenticate(session, secret).id == row.id
    stored = {column.name: getattr(row, column.name) for column in ApiKey.__table__.columns}
    assert secret not in str(stored)
    assert secret.rpartition("_")[2] not in str(stored)


@pytest.mark.parametrize(
    "spoil", [lambda s: s[:-1] + "x", lambda s: s + "0", lambda _: "", str.upper]
)
def test_anything_else_opens_nothing(session: Session, tenant: Tenant, spoil) -> None:  # type: ignore[no-untyped-def]
    _, secret = api_keys.create(session, tenant)
    with pytest.raises(InvalidApiKey):
        api_keys.authenticate(session, spoil(secret))


def test_the_prefix_of_another_key_does_not_help(session: Session, tenant: Tenant) -> None:
    _, mine = api_keys.create(session, tenant)
    _, other = api_keys.create(session, tenant)
    mixed = "_".join((*other.split("_")[:2], mine.split("_")[2]))
    with pytest.raises(InvalidApiKey):
        api_keys.authenticate(session, mixed)


def test_a_revoked_key_is_worthless(session: Session, tenant: Tenant) -> None:
    row, secret = api_keys.create(session, tenant)
    api_keys.revoke(session, row)
    with pytest.raises(InvalidApiKey, match="revoked"):
        api_keys.authenticate(session, secret)


def test_a_key_expires(session: Session, tenant: Tenant) -> None:
    yesterday = database_now(session) - timedelta(days=1)
    _, secret = api_keys.create(session, tenant, expires_at=yesterday)
    with pytest.raises(ExpiredApiKey):
        api_keys.authenticate(session, secret)


def test_use_is_written_once_a_minute(session: Session, tenant: Tenant) -> None:
    row, _ = api_keys.create(session, tenant)
    api_keys.record_use(session, row)
    first = row.last_used_at
    api_keys.record_use(session, row)
    assert first is not None
    assert row.last_used_at == first


def test_a_scope_that_does_not_exist_is_refused(session: Session, tenant: Tenant) -> None:
    with pytest.raises(ValueError, match="jobs:fly"):
        api_keys.create(session, tenant, ["jobs:fly"])


def test_a_tenant_is_made_once(session: Session, tenant: Tenant) -> None:
    assert api_keys.get_or_create_tenant(session).id == tenant.id

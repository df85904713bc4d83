"""API keys that were looked up just now are not looked up again, and still die when they must."""

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from api.known_keys import REMEMBERED_SECONDS, KnownKeys
from registry import api_keys
from registry.db import SessionFactory, database_now, transaction
from registry.errors import InvalidApiKey
from tests.factories import Holder


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(factory: SessionFactory, clock: Clock) -> KnownKeys:
    """The keys that one process knows; `factory` itself is another's."""
    return KnownKeys(type(factory)(**factory.kw), clock)


def _revoke(factory: SessionFactory, holder: Holder) -> None:
    with transaction(factory) as session:
        api_keys.revoke(session, api_keys.get(session, holder.tenant_id, holder.key_id))


def test_a_key_that_was_looked_up_is_recalled_for_a_few_seconds(
    known: KnownKeys, clock: Clock, holder: Holder
) -> None:
    assert known.recall(holder.secret) is None
    known.look_up(holder.secret)  # Notes the use of the key, which changes it.
    known.look_up(holder.secret)
    clock.now += REMEMBERED_SECONDS - 0.1
    found = known.recall(holder.secret)
    assert found is not None
    assert found.id == holder.key_id
    clock.now += 0.2
    assert known.recall(holder.secret) is None


def test_a_key_that_another_process_revoked_works_for_a_few_seconds_at_most(
    known: KnownKeys, clock: Clock, holder: Holder, factory: SessionFactory
) -> None:
    known.look_up(holder.secret)
    known.look_up(holder.secret)
    _revoke(factory, holder)
    clock.now += REMEMBERED_SECONDS
    assert known.recall(holder.secret) is None
    with pytest.raises(InvalidApiKey):
        known.look_up(holder.secret)


def test_a_key_is_recalled_no_longer_than_it_is_valid(
    known: KnownKeys, clock: Clock, holder: Holder, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        key = api_keys.get(session, holder.tenant_id, holder.key_id)
        key.expires_at = database_now(session) + timedelta(seconds=2)
    known.look_up(holder.secret)
    known.look_up(holder.secret)
    assert known.recall(holder.secret) is not None
    clock.now += 2
    assert known.recall(holder.secret) is None


def test_a_key_that_was_revoked_here_is_refused_at_once(
    client: TestClient, anonymous: TestClient
) -> None:
    made = client.post("/v1/api-keys", json={"scopes": ["jobs:read"]}).json()
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    for _ in range(3):
        assert anonymous.get("/v1/jobs", headers=bearer).status_code == 200
    assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert anonymous.get("/v1/jobs", headers=bearer).status_code == 401

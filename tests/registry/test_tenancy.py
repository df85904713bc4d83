"""Postgres shows a request the rows of its tenant alone, even to a query that forgets to ask."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import ProgrammingError

from api.deps import JobsReader, ReadSession
from api.main import create_app
from api.settings import ApiSettings
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from registry.tables import Base, Job, Webhook
from registry.tenancy import reading_of, transaction_of
from tests.api.furniture import furnish
from tests.factories import Holder, make_holder

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)

SHARED = {"blobs", "workers"}
"""Tables of the whole installation: digests and sizes of bytes, and who works here."""


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings, ApiSettings(hub_seconds=0))


@pytest.fixture
def tenants(
    app: FastAPI, factory: SessionFactory, settings: Settings, tmp_path: Path
) -> list[Holder]:
    """Two tenants with one thing of every kind each."""
    store = LocalStore(settings.data_dir / "artifacts")
    holders = []
    for name in ("ours", "theirs"):
        with transaction(factory) as session:
            holders.append(make_holder(session, name))
        with TestClient(app, headers=holders[-1].headers) as client:
            furnish(client, factory, store, holders[-1], tmp_path)
    return holders


def test_every_table_has_a_policy_or_is_shared(engine: Engine) -> None:
    with engine.connect() as connection:
        found = set(connection.scalars(text("SELECT tablename FROM pg_policies")))
        bound = set(connection.scalars(text("SELECT relname FROM pg_class WHERE relrowsecurity")))
    assert found == bound
    assert set(Base.metadata.tables) - found == SHARED, "its migration must CREATE POLICY of_tenant"


def rows_of(factory: SessionFactory, tenant_id: str) -> dict[str, list[str]]:
    """Every row of every table that a session of this tenant sees, without any filter."""
    with reading_of(factory, tenant_id) as session:
        return {
            table.name: sorted(map(str, session.execute(select(table))))
            for table in Base.metadata.sorted_tables
            if table.name not in SHARED
        }


def test_a_query_without_a_tenant_sees_only_its_own(
    tenants: list[Holder], factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        everything = {
            table.name: sorted(map(str, session.execute(select(table))))
            for table in Base.metadata.sorted_tables
            if table.name not in SHARED
        }
    ours, theirs = (rows_of(factory, holder.tenant_id) for holder in tenants)
    for name, rows in everything.items():
        assert sorted(ours[name] + theirs[name]) == rows, name
    filled = [name for name, rows in ours.items() if rows]
    assert len(filled) >= 18, filled


def test_a_route_that_forgets_the_tenant_still_answers_only_its_own(
    app: FastAPI, tenants: list[Holder]
) -> None:
    @app.get("/v1/everything")
    def everything(who: JobsReader, session: ReadSession) -> list[str]:
        return list(session.scalars(select(Job.tenant_id)))

    for holder in tenants:
        with TestClient(app, headers=holder.headers) as client:
            assert set(client.get("/v1/everything").json()) == {holder.tenant_id}


def test_what_is_anothers_can_neither_be_changed_nor_made(
    tenants: list[Holder], factory: SessionFactory
) -> None:
    ours, theirs = (holder.tenant_id for holder in tenants)
    with transaction_of(factory, ours) as session:
        changed = session.execute(update(Webhook).values(url="https://example.org/"))
        assert changed.rowcount == 1  # type: ignore[attr-defined]  # A DML's CursorResult.
    with pytest.raises(ProgrammingError, match="row-level security"):  # noqa: SIM117  # The commit too.
        with transaction_of(factory, ours) as session:
            session.execute(update(Webhook).values(tenant_id=theirs))


def test_a_pooled_connection_forgets_whose_it_was(
    tenants: list[Holder], factory: SessionFactory
) -> None:
    with reading_of(factory, tenants[0].tenant_id) as session:
        session.execute(select(Job.id))
    with transaction(factory) as session:
        assert len(set(session.scalars(select(Job.tenant_id)))) == 2


def test_the_queue_is_as_long_as_it_is_for_everyone(app: FastAPI, tenants: list[Holder]) -> None:
    positions = []
    for holder in tenants:
        with TestClient(app, headers=holder.headers) as client:
            jobs = client.get("/v1/jobs?status=queued").json()["data"]
            positions += [job["queue"]["position"] for job in jobs]
    assert sorted(positions) == [1, 2]

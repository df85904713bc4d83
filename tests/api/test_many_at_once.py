"""More requests at once than there are connections to the database, or threads."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text

from registry.db import SessionFactory, transaction
from registry.tables import Tenant
from tests.factories import Holder

REQUESTS = 80
_WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")


def test_more_requests_than_connections_are_all_answered(
    app: FastAPI, holder: Holder, job_id: str
) -> None:
    async def ask_all() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=holder.headers, timeout=60
        ) as client:
            asked = [client.get(f"/v1/jobs/{job_id}/events") for _ in range(REQUESTS)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [200] * REQUESTS


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_audit_entries_that_wait_for_each_other_leave_threads_to_others(
    app: FastAPI, holder: Holder, job_id: str, factory: SessionFactory
) -> None:
    async def ask() -> tuple[int, list[bool]]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=holder.headers, timeout=60
        ) as client:
            with transaction(factory) as session:
                session.execute(
                    select(Tenant.id).where(Tenant.id == holder.tenant_id).with_for_update()
                )
                url = f"/v1/jobs/{job_id}/cancel"
                changes = [asyncio.create_task(client.post(url)) for _ in range(REQUESTS)]
                while session.execute(_WAITING).scalar_one() < 4:
                    await asyncio.sleep(0.01)
                answer = await client.get(f"/v1/jobs/{job_id}")
                ended = [change.done() for change in changes]
            await asyncio.gather(*changes)
            return answer.status_code, ended

    status, ended = asyncio.run(ask())
    assert status == 200
    assert not any(ended)

"""More requests at once than there are connections to the database, or threads."""

import asyncio

import httpx
from fastapi import FastAPI

from tests.factories import Holder

REQUESTS = 80


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

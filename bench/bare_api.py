"""A bare FastAPI application that sends recorded SQL by hand: what the API's routes are held to.

It sends every statement that the API sends, reads every row that comes back and writes the same
answer as JSON; it has no middleware, checks no key and builds the answer from nothing.

`uvicorn --factory bench.bare_api:create_app`, with the recording named by `BARE_RECORDING`.
"""

import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from psycopg.rows import dict_row

from registry.ids import new_id

_IDS = re.compile(r"(?:job|evt|msg|aud)_[0-9a-f]{32}")


def create_app() -> FastAPI:
    """Three routes, each of which opens the recorded transactions and answers what was answered."""
    recorded = json.loads(Path(os.environ["BARE_RECORDING"]).read_text())
    for asked in recorded.values():
        asked["answer"] = json.loads(asked["answer"])
    database = os.environ["BARE_DATABASE"]
    local = threading.local()
    app = FastAPI()

    def answer(name: str) -> Response:
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(database, row_factory=dict_row)
        replay(local.connection, recorded[name]["statements"], set(recorded[name]["known_ids"]))
        return JSONResponse(recorded[name]["answer"])

    @app.get("/v1/jobs/{job_id}")
    def get_job(job_id: str) -> Response:  # noqa: ARG001  # The recording has its own.
        return answer("get")

    @app.get("/v1/jobs")
    def list_jobs(limit: int = 20) -> Response:  # noqa: ARG001  # The recording has its own.
        return answer("list")

    @app.post("/v1/jobs")
    async def create_job(request: Request) -> Response:
        json.loads(await request.body())
        return await run_in_threadpool(answer, "post")

    return app


def replay(
    connection: psycopg.Connection[dict[str, Any]],
    statements: Sequence[tuple[str, Any]],
    known: set[str],
) -> None:
    """Send the statements with ids of their own, and read what comes back."""
    fresh: dict[str, str] = {}
    last_seq = 0
    for statement, parameters in statements:
        if statement in ("COMMIT", "ROLLBACK"):
            getattr(connection, statement.lower())()
            continue
        sent = renewed(parameters, fresh, known)
        if statement.startswith("INSERT INTO audit_log"):
            sent["seq"] = last_seq + 1
        cursor = connection.cursor()
        if isinstance(sent, list):
            cursor.executemany(statement, sent)
            continue
        cursor.execute(statement, sent)
        rows = cursor.fetchall() if cursor.description else []
        if rows and "seq" in rows[0]:
            last_seq = rows[0]["seq"]


def renewed(parameters: Any, fresh: dict[str, str], known: set[str]) -> Any:
    """The parameters with a new id for every one that the recorded request had made."""
    if isinstance(parameters, dict):
        return {name: renewed(value, fresh, known) for name, value in parameters.items()}
    if isinstance(parameters, list):
        return [renewed(value, fresh, known) for value in parameters]
    if not isinstance(parameters, str) or not _IDS.fullmatch(parameters) or parameters in known:
        return parameters
    return fresh.setdefault(parameters, new_id(parameters.partition("_")[0]))

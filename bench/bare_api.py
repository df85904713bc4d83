"""A bare FastAPI application that sends recorded SQL by hand: what the API's routes are held to.

`uvicorn --factory bench.bare_api:create_app`, with the recording named by `BARE_RECORDING`.
"""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from registry.ids import new_id

_IDS = re.compile(r"(?:job|evt|msg)_[0-9a-f]{32}")


def create_app() -> FastAPI:
    """Three routes, each of which opens the recorded transactions and answers what was answered."""
    recorded = json.loads(Path(os.environ["BARE_RECORDING"]).read_text())
    database = os.environ["BARE_DATABASE"]
    local = threading.local()
    app = FastAPI()

    def answer(name: str) -> Response:
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(database)
        connection, fresh = local.connection, {}
        known = set(recorded[name]["known_ids"])
        for statement, parameters in recorded[name]["statements"]:
            if statement in ("COMMIT", "ROLLBACK"):
                getattr(connection, statement.lower())()
            else:
                connection.execute(statement, renewed(parameters, fresh, known))
        return Response(recorded[name]["answer"], media_type="application/json")

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


def renewed(parameters: Any, fresh: dict[str, str], known: set[str]) -> Any:
    """The parameters with a new id for every one that the recorded request had made."""
    if isinstance(parameters, dict):
        return {name: renewed(value, fresh, known) for name, value in parameters.items()}
    if isinstance(parameters, list):
        return [renewed(value, fresh, known) for value in parameters]
    if not isinstance(parameters, str) or not _IDS.fullmatch(parameters) or parameters in known:
        return parameters
    return fresh.setdefault(parameters, new_id(parameters.partition("_")[0]))

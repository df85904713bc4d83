"""GET, LIST and POST of jobs beside bare routes that send the same SQL; 304 and long polls."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient
from sqlalchemy import event

from api.main import create_app
from api.settings import ApiSettings
from bench.api_load import Asked, Spent, closed_loop
from bench.api_site import Bench, asked_of, bar, figures, wait_for
from tests.api.served import serving
from tests.servers import die_with_parent, free_port

_ROUNDS = 9
"""On a shared machine one round is a third above or below another."""
_AS_DEPLOYED = {"ESPALIER_POLL_SECONDS": "0.1", "ESPALIER_LOG_FORMAT": "json"}


def record(bench: Bench) -> Path:
    """Every statement that the API sends for each request, its transactions included."""
    app = create_app(bench.settings, ApiSettings(hub_seconds=0, rate_limit_per_second=0))
    engine = app.state.engine
    sent: list[tuple[str, Any]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, values, *_: sent.append((statement, values)),
    )
    event.listen(engine, "commit", lambda _c: sent.append(("COMMIT", None)))
    event.listen(engine, "rollback", lambda _c: sent.append(("ROLLBACK", None)))
    recording = {}
    with TestClient(app) as client:
        for name, asked in asked_of(bench).items():
            for _ in range(3):  # The first one also looks up the key, once in five seconds.
                sent.clear()
                answer = client.request(
                    asked.method, asked.path, content=asked.body, headers=asked.headers
                )
            recording[name] = {
                "statements": [(s, _plain(v)) for s, v in sent],
                "answer": answer.text,
                "known_ids": [bench.job_id],
            }
    path = bench.directory / "recording.json"
    path.write_text(json.dumps(recording))
    return path


def _plain(values: Any) -> Any:
    """Parameters as JSON keeps them: the driver's wrappers of JSON become their text."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if values is None or isinstance(values, str | int | float | bool):
        return values
    return json.dumps(values.obj) if hasattr(values, "obj") else str(values)


@contextmanager
def bare(bench: Bench) -> Iterator[tuple[str, int]]:
    """The bare application, on the same database."""
    port = free_port()
    url = bench.settings.database_url.replace("postgresql+psycopg:", "postgresql:")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "bench.bare_api:create_app"),
            *("--host", "127.0.0.1", "--port", str(port), "--no-access-log"),
        ],
        env={"PATH": "/usr/bin:/bin", "BARE_RECORDING": str(record(bench)), "BARE_DATABASE": url},
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent(),
    )
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def bench_routes(bench: Bench, *, requests: int) -> dict[str, Any]:
    """GET, LIST and POST beside the bare routes; 304 and long polls beside GET."""
    found: dict[str, Any] = {}
    with serving(bench.settings, _AS_DEPLOYED) as api, bare(bench) as other:
        for name, asked in asked_of(bench).items():
            found[name] = _paired((api.url, api.pid), other, asked, requests)
            bar(
                f"{name}: share of the bare route's requests per CPU-second",
                found[name]["share"],
                least=0.6 if name == "post" else 0.7,
            )
        get = asked_of(bench)["get"]
        seen = httpx.get(f"{api.url}{get.path}", headers=get.headers, trust_env=False)
        unchanged = Asked(
            "GET", get.path, headers={**(get.headers or {}), "If-None-Match": seen.headers["etag"]}
        )
        plain = closed_loop(api.url, api.pid, get, requests=requests)
        cheap = closed_loop(api.url, api.pid, unchanged, requests=requests)
        found["unchanged"] = {
            **figures(cheap),
            "of_get": plain.per_cpu_second / cheap.per_cpu_second,
        }
        bar("304: CPU as a share of GET's", found["unchanged"]["of_get"], most=1.0)
        found["long_poll"] = _long_poll(api.url, api.pid, get, seen.json()["version"], plain)
        bar(
            "long poll of 5 s: CPU as a share of GETs each 0.25 s",
            found["long_poll"]["of_get"],
            most=1.0,
        )
    return found


def _paired(
    api: tuple[str, int], other: tuple[str, int], asked: Asked, requests: int
) -> dict[str, Any]:
    for server in (api, other):
        closed_loop(*server, asked, requests=40)
    rounds = []
    for _ in range(_ROUNDS):
        ours = closed_loop(*api, asked, requests=requests)
        bare_route = closed_loop(*other, asked, requests=requests)
        rounds.append((ours, bare_route))
    ours, bare_route = sorted(rounds, key=lambda pair: _share(*pair))[_ROUNDS // 2]
    return {"share": _share(ours, bare_route), "api": figures(ours), "bare": figures(bare_route)}


def _share(ours: Spent, other: Spent) -> float:
    return ours.per_cpu_second / other.per_cpu_second


def _long_poll(url: str, pid: int, get: Asked, version: int, plain: Spent) -> dict[str, float]:
    waiting = Asked("GET", f"{get.path}?wait=5&if_version={version}", headers=get.headers)
    spent = closed_loop(url, pid, waiting, requests=40, threads=40)
    polls = 5 / 0.25
    per_poll = spent.cpu_seconds / spent.requests
    return {"cpu_ms": round(1000 * per_poll, 2), "of_get": per_poll * plain.per_cpu_second / polls}

"""Schemathesis against the real API: `python -m bench.contract --max-examples 500`.

Every phase (examples, coverage, fuzzing, stateful) and every check, on SQLite and on Postgres; the
bar is no finding. `--include` narrows a run to operations whose path matches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from psutil import getloadavg

from registry.db import create_engine, session_factory, transaction
from registry.migrate import migrate
from registry.settings import Settings
from registry.storage import store_for
from tests.api.furniture import furnish
from tests.api.served import serving
from tests.factories import Holder, make_holder
from tests.servers import postgres_server

PHASES = ("examples", "coverage", "fuzzing", "stateful")
ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_name("contract.toml")
RESULTS = Path(__file__).parent / "results"
_SHOWN = 60_000


@contextmanager
def database(kind: str, directory: Path) -> Iterator[Settings]:
    """Settings on a migrated, empty database of this kind."""
    if kind == "postgres":
        with postgres_server() as url:
            settings = Settings(data_dir=directory, database_url=url)
            migrate(settings)
            yield settings
        return
    settings = Settings(data_dir=directory)
    migrate(settings)
    yield settings


@contextmanager
def furnished(settings: Settings, directory: Path) -> Iterator[tuple[str, Holder, dict[str, str]]]:
    """The served API with a tenant that has one thing of every kind."""
    factory = session_factory(create_engine(settings))
    with transaction(factory) as session:
        holder = make_holder(session)
    with (
        serving(settings) as served,
        httpx.Client(base_url=served.url, headers=holder.headers, trust_env=False) as client,
    ):
        store = store_for(settings.artifacts_url)
        yield served.url, holder, furnish(client, factory, store, holder, directory)


def run(
    url: str,
    holder: Holder,
    *,
    report: Path,
    max_examples: int,
    phases: tuple[str, ...] = PHASES,
    include: str | None = None,
    seed: int | None = None,
    ids: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """One run of the command; `report` gets its JSON."""
    command = [
        *(str(Path(sys.executable).with_name("st")), "--config-file", str(CONFIG)),
        *("run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {holder.secret}"),
        *("--phases", ",".join(phases), "--max-examples", str(max_examples)),
        *("--checks", "all", "--continue-on-failure", "--no-color"),
        *("--suppress-health-check", "all", "--warnings", "off"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    if include:
        command += ["--include-path-regex", include]
    if seed is not None:
        command += ["--seed", str(seed)]
    hooks = {
        "SCHEMATHESIS_HOOKS": "bench.contract_hooks",
        "CONTRACT_IDS": json.dumps(dict(ids or {})),
        "PYTHONPATH": str(ROOT),
    }
    # Not among the project's files: the tool keeps a database of examples in its directory.
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=report.parent,
        env={**os.environ, **hooks},
    )


def summary(report: Path, **about: Any) -> dict[str, Any]:
    """What a report says that is worth keeping."""
    said = json.loads(report.read_text())
    return {
        **about,
        "schemathesis": said["schemathesis_version"],
        "seed": str(said["seed"]),
        "phases": {name: phase["status"] for name, phase in said["phases"].items()},
        "operations": said["operations"]["tested"],
        "cases": said["test_cases"]["generated"],
        "findings": [
            f"{failure['code']} {failure['title']}: {operation}"
            for failure in said["failures"]
            for operation in failure["operations"]
        ],
        "errors": [error["title"] for error in said["errors"]],
        "seconds": round(said["running_time"], 1),
        "load": [round(load, 1) for load in getloadavg()],
    }


def arguments() -> argparse.Namespace:
    """What to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--max-examples", type=int, default=500, help="per operation")
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--include", help="only paths that match")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--keep", action="store_true", help="add it to results/contract.json")
    return parser.parse_args()


def main() -> int:
    """Run once, print what was found; the number of findings."""
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="espalier-contract-") as name:
        directory = Path(name)
        report = directory / "report.json"
        with (
            database(asked.database, directory / "data") as settings,
            furnished(settings, directory) as (url, holder, ids),
        ):
            done = run(
                url,
                holder,
                report=report,
                max_examples=asked.max_examples,
                phases=tuple(asked.phases.split(",")),
                include=asked.include,
                seed=asked.seed,
                ids=ids,
            )
            key_works = httpx.get(f"{url}/v1/jobs", headers=holder.headers, trust_env=False)
        print(done.stdout[-_SHOWN:], done.stderr[-_SHOWN:])
        about = {
            "database": asked.database,
            "max_examples": asked.max_examples,
            "include": asked.include,
            "key_worked_until_the_end": key_works.status_code == 200,
        }
        found = summary(report, **about)
    if asked.keep:
        _keep(found)
    return len(found["findings"]) + len(found["errors"])


def _keep(found: dict[str, Any]) -> None:
    path = RESULTS / "contract.json"
    kept = json.loads(path.read_text()) if path.exists() else {"runs": []}
    kept["runs"].append(found)
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(min(main(), 100))

"""One registry filled by real runs: `python -m bench.frontier --model DIR --directory DIR`.

Through the real service and on the demo's text: a family of three sizes with recovery, and each of
six sizes cut without any. Then what the registry makes of them is asked for: the frontier of the
base model, and what it foretells of a size that no job had, with how often its intervals have held.
Begun again in the same directory it goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from bench.plot import plot_frontier
from espalier.client import Client
from espalier.connection import Connection
from espalier.demo.corpus import write_corpus
from espalier.demo.server import running_server

RESULTS = Path(__file__).parent / "results" / "frontier.json"
FAMILY = ("120M", "110M", "100M")
CUTS = ("125M", "120M", "115M", "110M", "105M", "100M")
UNSEEN = "112M"
POLL_SECONDS = 2.0
CALIBRATION = {"num_samples": 8, "sequence_length": 256, "batch_size": 4}
"""Little text, so that a machine with two cores is done in minutes."""


def requests(model: Path, corpus: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The family, then the cuts alone."""
    common = {
        "model": str(model),
        "data": {"train": str(corpus), "max_held_out_tokens": options.held_out_tokens},
        "importance": {"calibration": CALIBRATION},
    }
    trained = {**common, "target": list(FAMILY), "schedule": {"num_tokens": options.tokens}}
    yield {**trained, "evaluation": {"speed": True}}
    for size in CUTS:
        yield without_recovery(common, size)


def without_recovery(common: Mapping[str, Any], size: str) -> dict[str, Any]:
    return {**common, "target": size, "recovery": {"kind": "none"}, "evaluation": {"speed": False}}


def fill(client: Client, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs one after the other; how each ended. Those that the registry has are not run."""
    found = []
    for number, request in enumerate(wanted):
        submitted = client.submit(request, idempotency_key=f"bench-frontier-{number}")
        job = client.wait(submitted.id, poll_seconds=POLL_SECONDS)
        found.append(
            {
                "job": job.id,
                "target": request["target"],
                "trained": "recovery" not in request,
                "status": job.status,
                "outcome": job.outcome,
                "result": job.result,
            }
        )
        print(f"{job.id}: {request['target']}: {job.status}", flush=True)
    return found


def ask(connection: Connection, method: str, path: str, **how: Any) -> Any:
    """What the service answers, as JSON."""
    headers = {"Authorization": f"Bearer {connection.api_key}"}
    answer = httpx.request(method, f"{connection.url}{path}", headers=headers, timeout=60, **how)
    return answer.raise_for_status().json()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fill a registry, then read from it."""
    directory = options.directory.resolve()
    corpus = write_corpus(directory / "corpus", num_tokens=2 * options.tokens)
    model = options.model.resolve()
    wanted = list(requests(model, corpus, options))
    with (
        running_server(directory / "service", allowed_paths=(model, corpus)) as server,
        Client(server.url, server.api_key) as client,
    ):
        jobs = fill(client, wanted)
        unseen = without_recovery(wanted[-1], UNSEEN)
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "conditions": {
                "tokens": options.tokens,
                "held_out_tokens": options.held_out_tokens,
                "calibration": CALIBRATION,
            },
            "jobs": jobs,
            "comparisons": [
                ask(server, "GET", f"/v1/jobs/{job['job']}/comparison")["cost"] for job in jobs
            ],
            "frontier": ask(server, "GET", "/v1/frontier", params={"model": str(model)})["points"],
            "forecast": ask(server, "POST", "/v1/estimates", json=unseen)["forecast"],
        }


def report(found: Mapping[str, Any]) -> None:
    trained = {job["job"]: job["trained"] for job in found["jobs"]}
    for point in sorted(found["frontier"], key=lambda one: one["params"]):
        print(
            f"{point['params'] / 1e6:7.1f}M  perplexity {point['perplexity']:7.2f}"
            f"  {point['baseline_ratio']:.3f} of the base"
            f"  {'trained' if trained[point['job']] else 'cut alone':9}"
            f"  {'on the frontier' if point['on_frontier'] else ''}"
        )
    for one in found["forecast"]:
        print(
            f"{UNSEEN} without training: {one['ratio']} of the base"
            f" [{one['ratio_low']}, {one['ratio_high']}], intervals held {one['held']} of"
            f" {one['tried']} {one['reason'] or ''}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory")
    parser.add_argument("--directory", type=Path, required=True, help="where the service lives")
    parser.add_argument("--tokens", type=int, default=24_000, help="of the family's training")
    parser.add_argument("--held-out-tokens", type=int, default=4_096)
    options = parser.parse_args(arguments)
    found = measure(options)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    plot_frontier(found, RESULTS.with_suffix(".png"))
    report(found)


if __name__ == "__main__":
    main()

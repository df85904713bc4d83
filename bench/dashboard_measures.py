"""What is measured of the dashboard in a real browser: views, redraws, events, an hour, lists."""

import json
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import httpx
from playwright.sync_api import Browser, CDPSession, Page

from bench.dashboard_site import Site, add_jobs, sign_in
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
HOUR_STEPS = 3600
HOUR_EVENTS = 360
WARM_SHARE = 0.1
HOUR_TICKS = 720

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


def first_views(browser: Browser, site: Site) -> list[dict[str, Any]]:
    """Bytes on the wire and time to the load event of pages whose files no cache has."""
    found = []
    for name in ("overview", "jobs", "job", "new-job", "compare", "frontier"):
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


def redraws(browser: Browser, site: Site) -> dict[str, float]:
    """Milliseconds from new data of a long curve to its last pixel."""
    page, _ = sign_in(browser, site)
    page.goto(f"{site.url}/jobs/{site.world.finished}", wait_until="load")
    page.wait_for_function("Boolean(window.uPlot)")
    took: list[float] = page.evaluate(_REDRAW, [NUM_POINTS, NUM_REDRAWS])
    page.context.close()
    return spread(took)


def events_to_pixels(browser: Browser, site: Site) -> dict[str, float]:
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
    return spread([seen[str(number)] - at for number, at in committed.items()])


@dataclass
class _Hour:
    """How much of an hour's steps and events a page has been sent."""

    steps: int = 0
    events: int = 0

    def send(self, site: Site, share: float) -> None:
        """All that is due when this share of the hour is over."""
        steps = int(HOUR_STEPS * share) - self.steps
        events_due = int(HOUR_EVENTS * share) - self.events
        with transaction(site.factory) as session:
            job = session.get_one(Job, site.world.running)
            if steps:
                make_steps(session, job, first=job.step + 1, count=steps)
            for number in range(self.events, self.events + events_due):
                events.append(session, job, "warning", {"message": f"event {number}"})
        self.steps, self.events = self.steps + steps, self.events + events_due


def hour(browser: Browser, site: Site, seconds: float) -> dict[str, Any]:
    """The collected heap of a job's page before and after an hour's steps, sent within `seconds`.

    They come in `HOUR_TICKS` commits, every five seconds of the hour: each moves the curve, and an
    event makes the page refresh itself. It counts from when a tenth is over: until then code is
    compiled. How much of the heap is code is counted at both ends.
    """
    _plan_an_hour(site)
    page, devtools = sign_in(browser, site)
    refreshes = _count_refreshes(page)
    page.goto(f"{site.url}/jobs/{site.world.running}", wait_until="load")
    started, sent = time.monotonic(), _Hour()
    samples: list[dict[str, float]] = []
    code: list[int] = []
    for tick in range(1, HOUR_TICKS + 1):
        share = tick / HOUR_TICKS
        sent.send(site, share)
        left = started + share * seconds - time.monotonic()
        page.wait_for_timeout(max(1000 * left, 1))
        if share >= WARM_SHARE + len(samples) * (1 - WARM_SHARE) / 10:
            samples.append({"share": round(share, 3), **_memory(devtools)})
            if tick == HOUR_TICKS or not code:
                code.append(_code_bytes(devtools))
    page.context.close()
    return {
        "seconds": seconds,
        "steps": sent.steps,
        "events": sent.events,
        "refreshes": len(refreshes),
        "growth": samples[-1]["heap_bytes"] / samples[0]["heap_bytes"] - 1,
        "code_bytes": code,
        "samples": samples,
    }


def _plan_an_hour(site: Site) -> None:
    """So many tokens that the job's plan holds an hour's steps after those it has taken."""
    with transaction(site.factory) as session:
        job = session.get_one(Job, site.world.running)
        job.tokens_planned = job.tokens_seen // job.step * (job.step + HOUR_STEPS)


def _count_refreshes(page: Page) -> list[str]:
    asked: list[str] = []
    page.on("request", lambda request: asked.append("") if request.url.endswith("/live") else None)
    return asked


def _memory(devtools: CDPSession) -> dict[str, float]:
    """What is left after collecting: bytes of JavaScript, nodes and listeners of the document."""
    devtools.send("HeapProfiler.collectGarbage")
    counted = devtools.send("Memory.getDOMCounters")
    return {
        "heap_bytes": float(devtools.send("Runtime.getHeapUsage")["usedSize"]),
        "nodes": float(counted["nodes"]),
        "listeners": float(counted["jsEventListeners"]),
    }


def _code_bytes(devtools: CDPSession) -> int:
    """Of the heap, what the engine made of the scripts: bytecode, compiled code, their feedback."""
    chunks: list[str] = []
    devtools.on("HeapProfiler.addHeapSnapshotChunk", lambda event: chunks.append(event["chunk"]))
    devtools.send("HeapProfiler.takeHeapSnapshot", {"reportProgress": False})
    heap = json.loads("".join(chunks))
    meta, nodes = heap["snapshot"]["meta"], heap["nodes"]
    kind, size = (meta["node_fields"].index(name) for name in ("type", "self_size"))
    code, width = meta["node_types"][kind].index("code"), len(meta["node_fields"])
    rows = range(0, len(nodes), width)
    return sum(nodes[row + size] for row in rows if nodes[row + kind] == code)


def list_times(site: Site) -> dict[str, float]:
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
    return spread(took)


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and the worst."""
    return {
        "median": statistics.median(values),
        "p95": statistics.quantiles(values, n=20)[-1],
        "max": max(values),
    }

// Keeps a job's page current: its event stream says when, htmx fetches and morphs the part that
// changed, and a step of training goes into its curve at once.

import { Chart, keepInShape } from "./charts.js";
import { Heatmap } from "./heatmap.js";

const MINIMUM_PAUSE_MS = 300;
const FIRST_PAUSE_MS = 40;
// Where no event comes, or none gets through, the page looks again after this long.
const SILENCE_MS = 10_000;
// Beyond these a page that stays open asks for its curve again, thinned by the server.
const MOST_POINTS = 1500;
const ENDS = new Set(["job.succeeded", "job.failed", "job.cancelled"]);
const CHANGES_CURVES = new Set(["prune.step", "eval.completed", "checkpoint.created", "mixture.changed", "job.validated"]);

function throttled(action) {
  let timer = null;
  let last = 0;
  return () => {
    if (timer !== null) return;
    const pause = Math.max(FIRST_PAUSE_MS, last + MINIMUM_PAUSE_MS - performance.now());
    timer = setTimeout(async () => {
      timer = null;
      last = performance.now();
      await action();
    }, pause);
  };
}

export function followJob(root) {
  const id = root.dataset.job;
  const charts = new Map();
  const maps = new Map();

  const find = (attribute, known, make) => {
    for (const element of root.querySelectorAll(`[data-${attribute}]`)) {
      const name = element.dataset[attribute];
      if (known.get(name)?.element !== element) known.set(name, make(element));
    }
  };
  const draw = async () => {
    if (!window.uPlot || !root.querySelector("[data-plot], [data-heat]")) return;
    const response = await fetch(`/jobs/${id}/curves`, { headers: { Accept: "application/json" } });
    if (!response.ok) return;
    const { plots, heatmaps } = await response.json();
    find("plot", charts, (element) => new Chart(element));
    find("heat", maps, (element) => new Heatmap(element));
    for (const [name, chart] of charts) if (plots[name]) chart.update(plots[name]);
    for (const [name, map] of maps) if (heatmaps[name]) map.update(heatmaps[name]);
    keep([...charts.values(), ...maps.values()]);
  };
  const drawings = [];
  const keep = (found) => {
    if (!drawings.length && found.length) keepInShape(root, drawings);
    drawings.splice(0, drawings.length, ...found);
  };

  const undrawn = (attribute, known) =>
    [...root.querySelectorAll(`[data-${attribute}]`)].some((element) => known.get(element.dataset[attribute])?.element !== element);

  const redraw = throttled(draw);
  // A part may bring the place of a drawing later than the event that tells of its figures.
  root.addEventListener("htmx:after:swap", () => {
    if (undrawn("plot", charts) || undrawn("heat", maps)) redraw();
  });
  draw();
  if (root.dataset.active !== "yes" || !window.htmx) return;
  follow(root, id, { redraw, charts });
}

function follow(root, id, { redraw, charts }) {
  const stream = new EventSource(`/v1/jobs/${id}/stream?after=${root.dataset.seq}`);
  let silence = null;
  let over = false;
  const refresh = throttled(() => {
    window.htmx.trigger(root, "job-changed");
    wait();
  });
  const wait = () => {
    clearTimeout(silence);
    if (!over) silence = setTimeout(refresh, SILENCE_MS);
  };
  const stop = () => {
    over = true;
    stream.close();
    clearTimeout(silence);
  };
  wait();
  for (const type of root.dataset.events.split(" ")) {
    stream.addEventListener(type, (event) => {
      if (type === "metrics") {
        const point = JSON.parse(event.data);
        const points = point.train_loss === null ? 0 : charts.get("loss")?.append(point.tokens_seen, point.train_loss);
        if (points > MOST_POINTS) redraw();
      }
      if (CHANGES_CURVES.has(type) || ENDS.has(type)) redraw();
      refresh();
      if (ENDS.has(type)) stop();
    });
  }
  addEventListener("pagehide", stop);
}

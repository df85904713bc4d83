// Keeps a job's page current. Its event stream says when: a step of training goes into its curve
// and its numbers at once, all else htmx fetches and morphs.

import { Chart, keepInShape } from "./charts.js";
import { Heatmap } from "./heatmap.js";

const MINIMUM_PAUSE_MS = 300;
const FIRST_PAUSE_MS = 40;
// Where only steps come, or nothing gets through, the page looks again after this long.
const SILENCE_MS = 15_000;
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

  const undrawn = (attribute, known) =>
    [...root.querySelectorAll(`[data-${attribute}]`)].filter((element) => known.get(element.dataset[attribute])?.element !== element);
  const draw = async () => {
    if (!window.uPlot || !root.querySelector("[data-plot], [data-heat]")) return;
    const response = await fetch(`/jobs/${id}/curves`, { headers: { Accept: "application/json" } });
    if (!response.ok) return;
    const { plots, heatmaps } = await response.json();
    for (const element of undrawn("plot", charts)) charts.set(element.dataset.plot, new Chart(element));
    for (const element of undrawn("heat", maps)) maps.set(element.dataset.heat, new Heatmap(element));
    for (const [name, chart] of charts) if (plots[name]) chart.update(plots[name]);
    for (const [name, map] of maps) if (heatmaps[name]) map.update(heatmaps[name]);
    keep([...charts.values(), ...maps.values()]);
  };
  const drawings = [];
  const keep = (found) => {
    if (!drawings.length && found.length) keepInShape(root, drawings);
    drawings.splice(0, drawings.length, ...found);
  };

  const redraw = throttled(draw);
  // A part may bring the place of a drawing later than the event that tells of its figures.
  root.addEventListener("htmx:after:swap", () => {
    if (undrawn("plot", charts).length || undrawn("heat", maps).length) redraw();
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
  const tell = (name, text) => {
    const place = root.querySelector(`[data-now="${name}"]`);
    if (place) place.textContent = text;
  };
  const step = ({ tokens_seen: tokens, train_loss: loss }) => {
    tell("tokens", tokens.toLocaleString("en"));
    if (loss === null) return;
    tell("loss", loss.toFixed(3));
    if (charts.get("loss")?.append(tokens, loss) === false) redraw();
  };
  const hear = ({ type, data }) => {
    if (type === "metrics") return step(JSON.parse(data));
    if (CHANGES_CURVES.has(type) || ENDS.has(type)) redraw();
    refresh();
    if (ENDS.has(type)) stop();
  };
  // It does not tell of steps that were taken before it was open, or while it was broken off.
  stream.addEventListener("open", () => {
    redraw();
    refresh();
  });
  wait();
  for (const type of root.dataset.events.split(" ")) stream.addEventListener(type, hear);
  addEventListener("pagehide", stop);
}

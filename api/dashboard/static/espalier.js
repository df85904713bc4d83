// Keeps a page current: the job's event stream says when, htmx fetches and morphs the part that changed,
// uPlot redraws the curves. Without this file every page still shows its numbers.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const MINIMUM_PAUSE_MS = 400;
const FALLBACK_MS = 5000;

function throttled(action) {
  let timer = null;
  let last = 0;
  return () => {
    if (timer !== null) return;
    const pause = Math.max(60, last + MINIMUM_PAUSE_MS - performance.now());
    timer = setTimeout(async () => {
      timer = null;
      last = performance.now();
      await action();
    }, pause);
  };
}

function cutLines(curves) {
  return {
    hooks: {
      drawClear: [
        (plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.strokeStyle = css("--clay");
          ctx.lineWidth = devicePixelRatio;
          ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
          for (const tokens of curves().cuts) {
            const x = Math.round(plot.valToPos(tokens, "x", true));
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
          }
          ctx.restore();
        },
      ],
    },
  };
}

const shortCount = (value) => {
  for (const [scale, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (Math.abs(value) >= scale) return `${+(value / scale).toPrecision(4)}${unit}`;
  }
  return `${value}`;
};

const plain = (value) => (value >= 10000 ? shortCount(value) : `${+value.toPrecision(6)}`);

class Chart {
  constructor(element) {
    this.element = element;
    this.kind = element.dataset.plot;
    this.curves = { cuts: [] };
    this.plot = null;
  }

  data() {
    const { x, y } = this.curves[this.kind];
    if (this.kind === "loss") return [x, y];
    return [x, y, x.map(() => this.curves.base_perplexity)];
  }

  options() {
    const axis = { stroke: css("--ink-2"), grid: { stroke: css("--rule"), width: 1 }, ticks: { show: false }, font: `11px ${css("--sans")}` };
    const line = { stroke: css("--leaf"), width: 1.75, points: { show: this.kind !== "loss", size: 6, fill: css("--leaf") } };
    const series = [
      { label: "tokens", value: (_, v) => (v === null ? "–" : v.toLocaleString("en")) },
      { label: this.kind, value: (_, v) => (v === null ? "–" : v.toFixed(3)), ...line },
    ];
    if (this.kind !== "loss") {
      series.push({ label: "base model", value: (_, v) => (v == null ? "–" : v.toFixed(3)), stroke: css("--ink-3"), width: 1, dash: [2, 4], points: { show: false } });
    }
    const logarithmic = Boolean(this.curves[this.kind].logarithmic);
    return {
      width: this.element.clientWidth,
      height: 240,
      cursor: { y: false, points: { size: 7 } },
      scales: { x: { time: false, range: (_, low, high) => [0, Math.max(high ?? 1, this.curves.max_tokens)] }, y: { distr: logarithmic ? 3 : 1 } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map(shortCount) },
        { ...axis, size: 52, values: (_, ticks) => ticks.map((v) => (v === null ? "" : plain(v))) },
      ],
      series,
      plugins: [cutLines(() => this.curves)],
    };
  }

  update(curves) {
    const wasLogarithmic = this.curves[this.kind]?.logarithmic;
    this.curves = curves;
    if (!curves[this.kind].x.length) return;
    if (this.plot && wasLogarithmic === curves[this.kind].logarithmic) {
      this.plot.setData(this.data());
      return;
    }
    this.redraw();
  }

  redraw() {
    if (!this.curves[this.kind]?.x.length) return;
    this.plot?.destroy();
    this.element.setAttribute("hx-morph-skip", "");
    this.element.replaceChildren();
    this.plot = new uPlot(this.options(), this.data(), this.element);
  }

  resize() {
    this.plot?.setSize({ width: this.element.clientWidth, height: 240 });
  }
}

function followJob(root) {
  const id = root.dataset.job;
  const charts = window.uPlot ? [...root.querySelectorAll("[data-plot]")].map((element) => new Chart(element)) : [];

  const drawCurves = async () => {
    if (!charts.length) return;
    const response = await fetch(`/jobs/${id}/curves`, { headers: { Accept: "application/json" } });
    if (!response.ok) return;
    const curves = await response.json();
    for (const chart of charts) chart.update(curves);
  };
  const refresh = throttled(async () => {
    window.htmx?.trigger(root, "job-changed");
    await drawCurves();
  });

  drawCurves();
  new ResizeObserver(() => charts.forEach((chart) => chart.resize())).observe(root);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.redraw()));
  if (root.dataset.active !== "yes" || !window.htmx) return;

  const terminal = new Set(["job.succeeded", "job.failed", "job.cancelled"]);
  const last = root.querySelector(".events li")?.id.replace("event-", "") ?? "0";
  const stream = new EventSource(`/v1/jobs/${id}/stream?after=${last}`);
  let fallback = null;
  const stop = () => {
    stream.close();
    clearInterval(fallback);
  };
  for (const type of root.dataset.events.split(" ")) {
    stream.addEventListener(type, () => {
      refresh();
      if (terminal.has(type)) stop();
    });
  }
  fallback = setInterval(refresh, FALLBACK_MS);
  addEventListener("pagehide", stop);
}

const job = document.querySelector("[data-job]");
if (job) followJob(job);

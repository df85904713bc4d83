// Curves by uPlot: lines over training tokens, with the cuts marked.

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const HEIGHT = 240;
const STROKE = 1.75;
// Beyond these a curve that grew in the page is asked for again, thinned by the server.
const MOST_POINTS = 1500;

export const shortCount = (value) => {
  for (const [scale, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (Math.abs(value) >= scale) return `${+(value / scale).toPrecision(4)}${unit}`;
  }
  return `${+value.toPrecision(6)}`;
};

const shown = (value) => (value == null ? "–" : Math.abs(value) >= 1e5 ? shortCount(value) : +value.toPrecision(4));

// To one digit, down or up: where a logarithmic axis may begin and end.
const rounded = (value, round) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return round(value / power) * power;
};

// What the legend says of a series: the value under the pointer, or else the newest.
const spoken = (write) => (plot, value, series, at) => {
  if (at != null) return write(value);
  return write(plot.data[series].findLast((one) => one != null));
};

// Lines from edge to edge: down where something was cut, across where a level is.
function guides(drawing) {
  const draw = (plot) => {
    const { ctx, bbox } = plot;
    const { cuts, level } = drawing();
    const dashed = (colour, dash, trace) => {
      ctx.strokeStyle = css(colour);
      ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
      ctx.beginPath();
      trace();
      ctx.stroke();
    };
    ctx.save();
    ctx.lineWidth = devicePixelRatio;
    dashed("--clay", [3, 3], () => {
      for (const tokens of cuts) {
        const x = Math.round(plot.valToPos(tokens, "x", true));
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
      }
    });
    dashed("--ink-3", [2, 4], () => {
      if (level == null || !plot.series.at(-1).show) return;
      const y = Math.round(plot.valToPos(level.value, "y", true));
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
    });
    ctx.restore();
  };
  return { hooks: { drawClear: [draw] } };
}

export class Chart {
  // `drawing`: {lines: [{label, x, y, shade}], logarithmic, stepped, dots, level, cuts, max}
  constructor(element) {
    this.element = element;
    this.drawing = null;
    this.plot = null;
    this.frame = null;
    // How many points of the first line are on the canvas, and whether uPlot has been told of all.
    this.drawn = 0;
    this.behind = false;
  }

  data() {
    const { lines, level } = this.drawing;
    const tables = lines.map(({ x, y }) => [x, y]);
    const joined = tables.length === 1 ? tables[0] : uPlot.join(tables);
    return level == null ? joined : [...joined, joined[0].map(() => level.value)];
  }

  shape() {
    const { lines, logarithmic, level } = this.drawing;
    return JSON.stringify([lines.map((line) => line.label), Boolean(logarithmic), level == null]);
  }

  options() {
    const { lines, logarithmic, stepped, dots, level } = this.drawing;
    const axis = { stroke: css("--ink-2"), grid: { stroke: css("--rule"), width: 1 }, ticks: { show: false }, gap: 6, font: `11px ${css("--sans")}` };
    const paths = stepped ? { paths: uPlot.paths.stepped({ align: 1 }) } : {};
    const series = [{ label: "tokens", value: spoken((v) => (v == null ? "–" : v.toLocaleString("en"))) }];
    for (const { label, shade } of lines) {
      const stroke = css(`--c${shade}`);
      series.push({ label, stroke, width: STROKE, spanGaps: true, value: spoken(shown), points: { show: Boolean(dots), size: 6, fill: stroke }, ...paths });
    }
    if (level != null) {
      // For the legend and the scale; the line itself is a guide.
      series.push({ label: level.label, stroke: css("--ink-3"), width: 1, paths: () => null, points: { show: false }, value: spoken(shown) });
    }
    return {
      width: this.element.clientWidth,
      height: HEIGHT,
      cursor: { y: false, points: { size: 7 } },
      scales: {
        x: { time: false, range: (_, low, high) => [0, Math.max(high ?? 1, this.drawing.max)] },
        y: logarithmic ? { distr: 3, range: (_, low, high) => [rounded(low, Math.floor), rounded(high, Math.ceil)] } : {},
      },
      axes: [
        { ...axis, size: 28, values: (_, ticks) => ticks.map(shortCount) },
        { ...axis, size: 56, values: (_, ticks) => ticks.map((v) => (v == null ? "" : shortCount(v))) },
      ],
      series,
      plugins: [guides(() => this.drawing)],
    };
  }

  update(drawing) {
    const before = this.drawing && this.shape();
    this.drawing = drawing;
    if (!drawing.lines.some((line) => line.x.length)) return;
    if (this.plot && before === this.shape()) this.catchUp();
    else this.redraw();
  }

  catchUp() {
    this.plot.setData(this.data());
    this.settle();
  }

  settle() {
    this.drawn = this.drawing.lines[0].x.length;
    this.behind = false;
  }

  // One more point of the first line, without asking the server; false where it cannot be taken.
  // Those that come within a frame are drawn together, and none while nobody looks.
  append(x, y) {
    const line = this.drawing?.lines[0];
    const last = line?.x[line.x.length - 1];
    if (!this.plot || !(x >= last) || line.x.length > MOST_POINTS) return false;
    if (x === last) return true;
    line.x.push(x);
    line.y.push(y);
    this.frame ??= requestAnimationFrame(() => this.extend());
    return true;
  }

  // New points within the axes are one stroke more; every point is drawn again only where they are
  // not, and when somebody comes to read the curve.
  extend() {
    this.frame = null;
    const { plot, drawing, drawn } = this;
    const { x, y, shade } = drawing.lines[0];
    const { scales, series, ctx } = plot;
    const isOutside = (value) => value < scales.y.min || value > scales.y.max;
    if (!series[1].show || x[x.length - 1] > scales.x.max || y.slice(drawn).some(isOutside)) return this.catchUp();
    ctx.save();
    ctx.strokeStyle = css(`--c${shade}`);
    ctx.lineWidth = STROKE * devicePixelRatio;
    ctx.lineJoin = "round";
    ctx.beginPath();
    for (let i = drawn - 1; i < x.length; i++) ctx.lineTo(Math.round(plot.valToPos(x[i], "x", true)), Math.round(plot.valToPos(y[i], "y", true)));
    ctx.stroke();
    ctx.restore();
    this.drawn = x.length;
    this.behind = true;
    plot.setLegend();
  }

  redraw() {
    if (!this.drawing?.lines.some((line) => line.x.length)) return;
    this.plot?.destroy();
    this.element.setAttribute("hx-morph-skip", "");
    this.element.replaceChildren();
    this.plot = new uPlot(this.options(), this.data(), this.element);
    this.plot.root.addEventListener("pointerenter", () => this.behind && this.catchUp());
    this.settle();
  }

  resize() {
    const width = this.element.clientWidth;
    if (!this.plot || !width || width === this.plot.width) return;
    this.plot.setSize({ width, height: HEIGHT });
    this.catchUp();
  }
}

// Keeps charts and other drawings right when the page changes its width or its colours.
export function keepInShape(root, drawings) {
  new ResizeObserver(() => drawings.forEach((drawing) => drawing.resize())).observe(root);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawings.forEach((drawing) => drawing.redraw()));
}

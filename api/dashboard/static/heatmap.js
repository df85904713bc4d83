// The widths of all layers over the increments, on a canvas: darker is more of the base model left.

import { css } from "./charts.js";

const LEFT = 60;
const FOOT = 20;
const ROW = 20;
const TALLEST = 480;

export class Heatmap {
  // `map`: {title, unit, rows: [name], widths: [[int]], floor}
  constructor(element) {
    this.element = element;
    this.map = null;
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.tip = document.createElement("p");
    this.tip.className = "tip";
    this.tip.setAttribute("aria-hidden", "true");
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => (this.tip.textContent = ""));
  }

  update(map) {
    this.map = map;
    if (!this.canvas.isConnected) {
      this.element.setAttribute("hx-morph-skip", "");
      this.element.replaceChildren(this.canvas, this.tip);
    }
    this.canvas.setAttribute("aria-label", `${map.title} of each layer after each cut; the numbers are in the table below`);
    this.redraw();
  }

  place() {
    const width = this.element.clientWidth;
    const rows = this.map.widths.length;
    const row = Math.max(3, Math.min(ROW, Math.floor(TALLEST / rows)));
    return { width, row, height: rows * row + FOOT, across: (width - LEFT) / this.map.widths[0].length };
  }

  redraw() {
    if (!this.map || !this.element.clientWidth) return;
    const { width, height, row, across } = this.place();
    const { canvas, map } = this;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const ctx = canvas.getContext("2d");
    ctx.scale(devicePixelRatio, devicePixelRatio);
    ctx.fillStyle = css("--leaf");
    const base = map.widths[0];
    map.widths.forEach((line, r) =>
      line.forEach((value, layer) => {
        const share = base[layer] ? value / base[layer] : 1;
        ctx.globalAlpha = 0.12 + (0.88 * (share - map.floor)) / (1 - map.floor);
        ctx.fillRect(LEFT + layer * across, r * row, Math.max(across - 2, 1), Math.max(row - 2, 1));
      }),
    );
    ctx.globalAlpha = 1;
    ctx.fillStyle = css("--ink-2");
    ctx.font = `11px ${css("--sans")}`;
    const everyRow = Math.ceil(14 / row);
    map.rows.forEach((name, r) => r % everyRow === 0 && ctx.fillText(name, 0, r * row + Math.min(row, 15) - 2));
    ctx.textAlign = "center";
    const everyColumn = Math.max(1, Math.ceil((24 * base.length) / (width - LEFT)));
    for (let layer = 0; layer < base.length; layer += everyColumn) ctx.fillText(layer, LEFT + (layer + 0.5) * across, height - 5);
  }

  point(event) {
    const { row, across } = this.place();
    const layer = Math.floor((event.offsetX - LEFT) / across);
    const r = Math.floor(event.offsetY / row);
    const value = this.map.widths[r]?.[layer];
    const base = this.map.widths[0][layer];
    this.tip.textContent =
      value === undefined ? "" : `layer ${layer}, ${this.map.rows[r]}: ${value.toLocaleString("en")} of ${base.toLocaleString("en")} ${this.map.unit} (${Math.round((100 * value) / base)} %)`;
  }

  resize() {
    this.redraw();
  }
}

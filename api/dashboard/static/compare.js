// The curves of several jobs over each other.

import { Chart, keepInShape } from "./charts.js";

export async function drawComparison(root) {
  if (!window.uPlot) return;
  const response = await fetch(root.dataset.compare, { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const plots = await response.json();
  const charts = [...root.querySelectorAll("[data-plot]")].map((element) => new Chart(element));
  for (const chart of charts) chart.update(plots[chart.element.dataset.plot]);
  keepInShape(root, charts);
}

// Lines over time and what was learned, drawn by uPlot.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { colour } from "./colours.js";
import { clock, percent } from "./dom.js";

const HEIGHT = 220;

/** What an axis looks like. */
function axis(values, size = 46) {
  return { stroke: () => colour("soft"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false }, values, size, font: "12px system-ui, sans-serif" };
}

/** A share on a metric's scale as people say it. */
export function worded(metric, share) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  if (metric.unit === "%") return percent(share);
  return `${(metric.low + share * (metric.high - metric.low)).toFixed(0)} ${metric.unit}`;
}

/** A host over time with the centre and the band of its group, and the levels of danger and failure. */
export function hostChart(into, metric) {
  const line = (label, name, width, dash) => ({
    label, stroke: () => colour(name), width, dash, points: { show: false }, value: (_, value) => worded(metric, value),
  });
  const edge = { ...line("", "used", 0), label: "band" };
  const plot = new uPlot({
    width: Math.max(280, into.clientWidth), height: HEIGHT,
    scales: { x: { time: true }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(1, high ?? 1)] } },
    axes: [{ ...axis((_, times) => times.map((time) => clock(time))), space: 76 }, axis((_, shares) => shares.map((share) => worded(metric, share)))],
    series: [
      { label: "time", value: (_, time) => clock(time) },
      line("host", "bad", 2.4), line("centre of its group", "spare", 1.6, [6, 4]),
      edge, edge, // not in the legend (style.css)
      line("danger", "limit", 1.2, [5, 4]), line("failure", "bad", 1.2, [2, 3]),
    ],
    bands: [{ series: [4, 3], fill: () => `color-mix(in srgb, ${colour("spare")} 14%, transparent)` }],
    cursor: { points: { show: false } },
  }, [[], [], [], [], [], [], []], into);
  new ResizeObserver(() => plot.setSize({ width: Math.max(280, into.clientWidth), height: HEIGHT })).observe(into);
  return {
    /** Show a HostHistory. */
    set(found) {
      const level = (value) => found.times.map(() => value ?? null);
      plot.setData([found.times, found.values, found.centre, found.low, found.high, level(found.threshold), level(found.failure)]);
    },
    destroy: () => plot.destroy(),
  };
}

/** What was learned of an application: how often its hosts had which share in use; `hosts` are [name, share] now. */
export function learnedChart(into, { bins, counts }, hosts) {
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  const shares = counts.map((count) => count / total), highest = Math.max(...shares);
  const marks = counts.map((_, bin) => (hosts.some(([, share]) => Math.floor(share * bins) === bin) ? highest * 1.06 : null));
  const plot = new uPlot({
    width: Math.max(280, into.clientWidth), height: 190,
    scales: { x: { time: false, range: [0, 1] }, y: { range: [0, highest * 1.15] } },
    axes: [axis((_, found) => found.map((share) => percent(share))), axis((_, found) => found.map((share) => percent(share)))],
    series: [
      { label: "memory in use", value: (_, share) => percent(share) },
      { label: "learned", stroke: () => colour("spare"), fill: () => colour("wait"), width: 1.4, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false }, value: (_, share) => percent(share) },
      { label: "hosts now", stroke: () => colour("bad"), paths: () => null, points: { show: true, size: 8, fill: () => colour("bad") }, value: () => "" },
    ],
    cursor: { points: { show: false } },
  }, [counts.map((_, bin) => bin / bins), shares, marks], into);
  return { destroy: () => plot.destroy() };
}

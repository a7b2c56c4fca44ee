// An evacuation's steps as bars from begun to done, as they happen.

import { seconds, svg } from "./dom.js";

const MEANING = {
  alarm: "alarm accepted", leased: "spare leased", planned: "planned", suspected: "host is suspect", confirmed: "operator's word", noticed: "ranks told", prepare_destination: "spare prepared",
  gathered: "ranks have stopped", migrating: "guests moved", verified: "guests verified", committed: "resource manager told",
  released: "ranks run again", retired: "host is defunct", checkpointed: "checkpoint written", cancelled: "given up", failed: "failed",
};
const ROW = 24, LEFT = 150, WIDTH = 430, TOP = 22;

/** So many of a length that five of them or fewer go along ``long`` seconds: 1, 2 or 5 times a power of ten. */
function even(long) {
  const least = long / 5, power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((times) => times * power >= least) * power;
}

/** When it began, and when it is over or now. */
export function span(evacuation, now) {
  const begun = Math.min(...evacuation.steps.map((step) => step.begun), evacuation.alarm?.time ?? Infinity);
  const ended = Math.max(...evacuation.steps.map((step) => step.done ?? now));
  return [begun, ended];
}

/** The picture; `now` ends what is under way, `at` marks a moment of a replay. */
export function timeline(evacuation, now, at = null) {
  const steps = [...evacuation.steps].sort((a, b) => a.begun - b.begun || (a.done ?? Infinity) - (b.done ?? Infinity));
  if (!steps.length) return svg("svg.timeline");
  const [begun, ended] = span(evacuation, now);
  const long = Math.max(ended - begun, 0.5), height = TOP + steps.length * ROW;
  const x = (time) => LEFT + ((WIDTH - LEFT - 44) * (time - begun)) / long;
  const picture = svg("svg.timeline", { viewBox: `0 0 ${WIDTH} ${height + 4}`, role: "img", "aria-label": `Steps of ${evacuation.id}: ${steps.map((step) => `${step.name} ${step.done ? `done after ${seconds(step.done - begun)}` : "under way"}`).join(", ")}` });
  const apart = even(long);
  for (let mark = 0; mark * apart <= long; mark++) {
    const at = x(begun + mark * apart);
    picture.append(svg("line.grid", { x1: at, x2: at, y1: TOP - 4, y2: height }), svg("text.soft.mid", { x: at, y: 12 }, `${Number((mark * apart).toPrecision(3))} s`));
  }
  const stopped = steps.find((step) => step.name === "gathered")?.done, released = steps.find((step) => step.name === "released")?.done;
  if (stopped) {
    const until = released ?? Math.min(now, ended);
    picture.append(svg("rect.wait", { x: x(stopped), y: TOP - 4, width: Math.max(0, x(until) - x(stopped)), height: height - TOP + 4 }, svg("title", {}, "the affected ranks wait")));
  }
  steps.forEach((step, row) => {
    const y = TOP + row * ROW, end = step.done ?? Math.max(step.begun, Math.min(now, ended));
    picture.append(svg("g", {}, svg("title", {}, step.detail || step.name),
      svg("text.end", { x: LEFT - 8, y: y + 14 }, MEANING[step.name] ?? step.name.replaceAll("_", " ")),
      svg(step.done ? "rect.bar" : "rect.open", { x: x(step.begun), y: y + 4, width: Math.max(3, x(end) - x(step.begun)), height: 13, rx: 3 }),
      svg("text.soft", { x: Math.max(x(end), x(step.begun) + 3) + 5, y: y + 14 }, step.done ? seconds(step.done - step.begun) : "…")));
  });
  if (at !== null) picture.append(svg("line.now", { x1: x(at), x2: x(at), y1: TOP - 8, y2: height }));
  return picture;
}

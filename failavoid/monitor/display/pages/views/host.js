// A host: its metric over time among its peers, its alarm and the evidence, its guests.

import { ask } from "../access.js";
import { hostChart, worded } from "../charts.js";
import { fill, step } from "../colours.js";
import { bytes, evacuationLink, facts, h, jobLink, moment, parts, percent, seconds, table } from "../dom.js";
import { badge } from "./machine.js";

const SHOWN_S = 900, EVERY_MS = 2000;

export function hostView({ copy, page, rack, metric }, name) {
  let chart, timer, found = null, drawn = "";
  const heading = h("div"), chartBox = h("div.chart"), cores = h("div.cores", { role: "img" }), rest = h("div"), now = h("span");
  page.replaceChildren(heading, h("h2", {}, metric().label, " ", now), chartBox, h("h2", {}, "Cores"), cores, rest);
  chart = hostChart(chartBox, metric());

  async function look() {
    try {
      const since = Date.now() / 1000 - SHOWN_S, last = found?.times.at(-1);
      const more = await ask(`/live/hosts/${name}/history?metric=${metric().name}&since=${last ? last + 0.001 : since}`);
      found = found && last ? joined(found, more, since) : more;
      chart.set(found);
    } catch { /* the stream tells of a service that is away */ }
    timer = setTimeout(look, EVERY_MS);
  }
  look();

  return {
    kinds: ["host", "guest", "alarm", "evacuation"],
    cores: [name],
    close() {
      clearTimeout(timer);
      chart.destroy();
    },
    tick() {
      now.textContent = worded(metric(), copy.share(name));
      const uses = rack.cores.get(name) ?? [];
      cores.setAttribute("aria-label", `${uses.length} cores: ${uses.map((use) => percent(use)).join(", ")}`);
      cores.replaceChildren(...uses.map((use, core) => {
        const block = h("span", { title: `core ${core}: ${percent(use)}` });
        block.style.background = fill(step(use));
        return block;
      }));
    },
    draw() {
      const host = copy.get("host", name);
      if (!host) {
        heading.replaceChildren(h("h1", {}, name), h("p.bad", {}, "There is no such host."));
        return;
      }
      const guests = copy.guestsOf(name), alarm = [...copy.all("alarm").values()].filter((one) => one.host === name).at(-1);
      const evacuations = [...copy.all("evacuation").values()].filter((one) => one.host === name || one.spare === name).reverse();
      heading.replaceChildren(h("h1", {}, name), h("p.lead", {}, `${host.pool}${host.reason ? `: ${host.reason}` : ""}`),
        facts([["memory", bytes(host.memory_kb * 1024)], ["hardware", host.hardware], ["reserved", host.reserved && "for evacuations"],
          ...Object.entries(host.domains), ...host.marks.map((mark) => [mark.kind, `by ${mark.who}, ${moment(mark.time)}: ${mark.reason}`])]));
      rest.replaceChildren(...parts(
        h("h2", {}, "Guests"), table(["guest", "rank", "job", "state", "cores", "memory"], guests.map((guest) => [
          guest.name, guest.rank ?? "–", jobLink(guest.job), guest.state, guest.cores.join(", "), bytes(guest.memory_kb * 1024)])),
        alarm ? evidenceOf(copy, alarm) : null,
        evacuations.length ? [h("h2", {}, "Evacuations"), table(["", "", "state"], evacuations.map((one) => [
          evacuationLink(one.id), one.host === name ? "left" : "taken as spare", badge(one.state)]))] : null,
        host.warnings.map((warning) => h("p.soft", {}, warning))));
    },
  };
}

/** An alarm in figures. */
export function evidenceOf(copy, alarm) {
  const label = copy.get("service", "monitor")?.metrics.find((one) => one.name === alarm.metric)?.label ?? alarm.metric;
  const { evidence } = alarm, interval = evidence.predicted_failure_interval_s;
  return [h("h2", {}, "Last alarm"), facts([
    ["raised", `${moment(alarm.time)}, by rule ${alarm.rule}`],
    [label, percent(evidence.value)],
    ["its group", `${percent(evidence.centre)} ± ${(evidence.scale * 100).toFixed(1)} %, ${evidence.peers} ${evidence.peers === 1 ? "peer" : "peers"}`],
    ["z", evidence.z.toFixed(1)],
    ["growth", evidence.slope_per_s === null ? "" : `${(evidence.slope_per_s * 6000).toFixed(1)} % a minute`],
    ["failure in", evidence.predicted_failure_s === null ? "" : `${seconds(evidence.predicted_failure_s)} from then${interval ? `, between ${seconds(interval[0])} and ${seconds(interval[1])} (80 %)` : ""}`],
    ["pressure from", evidence.pressure_from],
    ["likelihood", evidence.relative_probability === null ? "" : percent(evidence.relative_probability)],
    ["a move", evidence.move_recommended ? "" : "is not recommended: its guests grow, and no free host has room for them"],
  ])];
}

/** A history with what has come since, without what is too old. */
function joined(before, more, since) {
  const from = before.times.findIndex((time) => time >= since);
  const kept = (list) => (from < 0 ? [] : list.slice(from));
  const result = { ...more };
  for (const line of ["times", "values", "centre", "low", "high"]) result[line] = kept(before[line]).concat(more[line]);
  return result;
}

// What was learned of each application, and where the hosts of its jobs stand now.

import { learnedChart } from "../charts.js";
import { h, hostLink, parts, percent } from "../dom.js";

const EVERY_S = 10;

export function learnedView({ copy, page, metric }) {
  let charts = [], drawnAt = 0; // values of which time are drawn
  const close = () => {
    charts.forEach((chart) => chart.destroy());
    charts = [];
  };
  return {
    kinds: ["distribution", "job"],
    close,
    /** Hosts go on: draw anew now and then. */
    tick() {
      if (copy.time - drawnAt >= EVERY_S) this.draw();
    },
    draw() {
      close();
      drawnAt = copy.time;
      const found = [...copy.all("distribution")];
      page.replaceChildren(h("h1", {}, "Learned"), h("p.lead", {}, found.length
        ? "How often hosts of an application had which share of their memory in use, over its completed jobs. Red: its hosts now."
        : "Nothing yet: an application is learned from its completed jobs."));
      for (const [application, learned] of found) {
        const jobs = [...copy.all("job")].filter(([, job]) => job.application === application && !job.ended);
        const same = learned.metric === metric().name;
        const hosts = same ? jobs.flatMap(([id]) => [...copy.hostsOf(id)]).map((host) => [host, copy.share(host)]).filter(([, share]) => !Number.isNaN(share)) : [];
        const box = h("div.chart");
        page.append(...parts(h("h2", {}, `${application}, ${learned.runs} run${learned.runs === 1 ? "" : "s"}`), box,
          hosts.length ? h("p.soft", {}, hosts.slice(0, 24).map(([host, share]) => [hostLink(host), ` ${percent(share)}  `])) : null,
          same || !jobs.length ? null : h("p.soft", {}, "Colour the machine by memory in use to see where its hosts stand.")));
        charts.push(learnedChart(box, learned, hosts));
      }
    },
  };
}

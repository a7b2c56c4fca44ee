// Jobs, and one job: its ranks, where they are, and how long they were held at barriers.

import { facts, h, hostLink, jobLink, moment, parts, percent, seconds, table } from "../dom.js";
import { evacuationTable } from "./machine.js";

export function jobsView({ copy, page }) {
  return {
    kinds: ["job", "guest"],
    draw() {
      const found = [...copy.all("job")].sort(([, a], [, b]) => (a.ended ? 1 : 0) - (b.ended ? 1 : 0) || b.created - a.created);
      page.replaceChildren(h("h1", {}, "Jobs"), table(["job", "user", "state", "ranks", "hosts", "created"], found.map(([id, job]) => [
        jobLink(id), job.user, job.state, job.guests.length || job.hosts.length, job.ended ? "" : copy.hostsOf(id).size, moment(job.created)])));
    },
  };
}

export function jobView({ copy, page }, id) {
  return {
    kinds: ["job", "guest", "host", "evacuation"],
    draw() {
      const job = copy.get("job", id);
      if (!job) {
        page.replaceChildren(h("h1", {}, id), h("p.bad", {}, "There is no such job, or it ended long ago."));
        return;
      }
      const ranks = job.guests.map((name, rank) => ({ name, rank, ...copy.get("guest", name) }));
      const evacuations = [...copy.all("evacuation").values()].filter((one) => one.job === id).reverse();
      const holds = evacuations.map((one) => {
        const done = Object.fromEntries(one.steps.map((step) => [step.name, step.done]));
        return done.gathered && (done.released || !["CANCELLED", "FAILED"].includes(one.state)) ? (done.released ?? Date.now() / 1000) - done.gathered : null;
      }).filter((hold) => hold !== null);
      page.replaceChildren(...parts(h("h1", {}, id), h("p.lead", {}, `${job.state}${job.message ? `: ${job.message}` : ""}`),
        facts([["user", job.user], ["application", job.application], ["policy", job.policy], ["created", moment(job.created)],
          ["started", job.started && moment(job.started)], ["ended", job.ended && `${moment(job.ended)}, status ${job.exit_status}`],
          ["held at barriers", holds.length ? `${holds.length === 1 ? "once" : `${holds.length} times`}, ${seconds(holds.reduce((sum, hold) => sum + hold, 0))} in all` : "never"]]),
        h("h2", {}, "Ranks"),
        job.resource === "hosts" ? table(["rank's host", "memory"], job.hosts.map((host) => [hostLink(host), percent(copy.share(host))]))
          : job.ended ? h("p.soft", {}, "It has ended: its guests have gone, or wait for the next job.")
            : table(["rank", "guest", "host", "cores", "state"], ranks.map((one) => [one.rank, one.name, one.host ? hostLink(one.host) : "–", one.cores?.join(", "), one.state])),
        h("h2", {}, "Evacuations"), evacuationTable(evacuations)));
    },
    jobHosts: () => copy.hostsOf(id),
  };
}

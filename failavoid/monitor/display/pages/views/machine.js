// What there is to know at a glance: what is under way, alarms, findings.

import { ENDS } from "../copy.js";
import { clock, evacuationLink, h, hostLink, jobLink, parts, percent, table } from "../dom.js";

export const LAST = 12;

/** How an evacuation stands, in a word. */
export function badge(state) {
  const kind = state === "FAILED" ? "bad" : state === "RETIRED" || state === "MOVED" ? "good" : ENDS.has(state) ? "over" : "under-way";
  return h(`span.badge.${kind}`, {}, state.toLowerCase());
}

export function evacuationTable(found) {
  return table(["evacuation", "host", "spare", "job", "state"], found.map((one) => [
    evacuationLink(one.id), hostLink(one.host), one.spare ? hostLink(one.spare) : "–", jobLink(one.job), badge(one.state)]), "None yet.");
}

export function machineView({ copy, page }) {
  return {
    kinds: ["host", "evacuation", "alarm", "finding", "job", "difference", "service", "guest"],
    draw() {
      const evacuations = [...copy.all("evacuation").values()].reverse();
      const open = evacuations.filter((one) => !ENDS.has(one.state));
      const alarms = [...copy.all("alarm").values()].reverse().slice(0, LAST);
      const findings = [...copy.all("finding").values()];
      const jobs = [...copy.all("job")].filter(([, job]) => !job.ended);
      const controller = copy.get("service", "controller");
      page.replaceChildren(...parts(
        h("h1", {}, open.length ? `${open.length} evacuation${open.length > 1 ? "s" : ""} under way` : "The machine"),
        controller && !controller.reachable ? h("p.bad", {}, "The controller does not answer: no host is left while that is so.") : null,
        controller?.stopped ? h("p.bad", {}, `New evacuations are stopped by ${controller.stopped_by}: ${controller.reason}`) : null,
        controller?.mode && controller.mode !== "act" ? h("p.soft", {}, `The controller's mode is ${controller.mode}.`) : null,
        h("h2", {}, "Evacuations"), evacuationTable([...open, ...evacuations.filter((one) => ENDS.has(one.state))].slice(0, LAST)),
        h("h2", {}, "Alarms"), table(["time", "host", "job", "value", "group", "z"], alarms.map((one) => [
          clock(one.time), one.host ? hostLink(one.host) : one.domain, jobLink(one.job), percent(one.value), percent(one.evidence.centre), one.evidence.z.toFixed(1)]), "None."),
        h("h2", {}, "Findings"), table(["", "of", ""], findings.map((one) => [one.kind, one.subject, one.text]), "None: samples arrive as they should."),
        h("h2", {}, "Jobs"), table(["job", "user", "state", "ranks", "hosts"], jobs.map(([id, job]) => [
          jobLink(id), job.user, job.state, job.guests.length || job.hosts.length, copy.hostsOf(id).size]), "None runs."),
        copy.all("difference").size ? [h("h2", {}, "Differences"), table([""], [...copy.all("difference").values()].map((one) => [one.words]))] : null,
      ));
    },
  };
}

// An evacuation: its steps as they happen, each guest's move, why; confirm and cancel for those who may.

import { ask, mayAct } from "../access.js";
import { ENDS } from "../copy.js";
import { bytes, facts, h, hostLink, jobLink, parts, seconds, table } from "../dom.js";
import { timeline } from "../timeline.js";
import { evidenceOf } from "./host.js";
import { badge, evacuationTable } from "./machine.js";

const TILL_MOVE = new Set(["PREDICTED", "LEASED", "NOTICED", "GATHERED"]);

export function evacuationsView({ copy, page }) {
  return {
    kinds: ["evacuation", "score"],
    draw() {
      const scores = [...copy.all("score").values()];
      const share = (value) => (value === null ? "–" : `${(value * 100).toFixed(0)} %`);
      page.replaceChildren(h("h1", {}, "Evacuations"), evacuationTable([...copy.all("evacuation").values()].reverse()),
        h("h2", {}, "How good predictions were"), table(["rule", "mode", "said", "true", "precision", "recall", "lead"], scores.map((one) => [
          one.rule + (one.acting ? " (acts)" : ""), one.mode, one.predictions, one.true, share(one.precision), share(one.recall), seconds(one.lead_median_s)]), "None yet."));
    },
  };
}

export function evacuationView({ copy, page }, id) {
  const said = h("p", { role: "status" }), picture = h("div"), top = h("div"), acts = h("div.acts"), rest = h("div");
  page.replaceChildren(top, acts, said, h("h2", {}, "Timeline"), picture, rest);
  let timer = null;

  async function order(act, words) {
    const reason = act === "cancel" ? prompt("Why? It is kept in the audit trail.", "") : "";
    if (reason === null) return;
    said.className = "";
    said.textContent = "…";
    try {
      await ask(`/live/evacuations/${id}/${act}`, act === "cancel" ? { reason } : {});
      said.textContent = words;
    } catch (error) {
      said.className = "bad";
      said.textContent = error.message;
    }
  }

  function drawTimeline() {
    const one = copy.get("evacuation", id);
    if (one) picture.replaceChildren(timeline(one, Date.now() / 1000));
  }

  return {
    kinds: ["evacuation", "progress"],
    close: () => clearInterval(timer),
    draw() {
      const one = copy.get("evacuation", id);
      if (!one) {
        top.replaceChildren(h("h1", {}, id), h("p.bad", {}, "It is not among the last evacuations."));
        return;
      }
      const open = !ENDS.has(one.state);
      if (open) timer ??= setInterval(drawTimeline, 250);
      else clearInterval(timer);
      top.replaceChildren(...parts(h("h1", {}, `${one.host} → ${one.spare ?? "…"}`), h("p.lead", {}, badge(one.state), " ", id),
        one.error ? h("p.bad", {}, one.error) : null,
        facts([["job", jobLink(one.job)], ["host", hostLink(one.host)], ["spare", one.spare && hostLink(one.spare)], ["reason", one.reason],
          ["domain", one.domain], ["attempt", one.attempt > 1 && one.attempt], ["is to end", one.cancel],
          ["confirmed by", one.confirmed_by], ...Object.entries(one.failed_spares).map(([host, why]) => [`gave up ${host}`, why]),
          ["plan", one.plan && `${one.plan.decision}: ${one.plan.reasons.join("; ").replace(`${one.plan.decision}: `, "")}`]])));
      const button = (kind, act, words, done) => h(`button.${kind}`, { type: "button", disabled: !mayAct(), title: mayAct() ? null : "An operator's token is needed.", onclick: () => order(act, done) }, words);
      acts.replaceChildren(...parts(
        open && one.needs_confirmation && !one.confirmed_by ? button("act", "confirm", "Confirm", "Confirmed.") : null,
        open && TILL_MOVE.has(one.state) ? button("stop", "cancel", "Cancel", "It is to be cancelled.") : null,
        open ? null : h("a", { href: `#/evacuation/${id}/replay` }, "Replay it")));
      drawTimeline();
      rest.replaceChildren(...parts(h("h2", {}, "Guests"), moves(one, copy.get("progress", id) ?? []), one.alarm ? evidenceOf(copy, one.alarm) : null));
    },
  };
}

/** Each guest's move, with a bar while it is under way. */
function moves(evacuation, progress) {
  const far = new Map(progress.map((one) => [one.guest, one]));
  return table(["guest", "to cores", "", "time", "stood still", "sent"], evacuation.migrations.map((move) => {
    const one = far.get(move.guest), all = one ? one.processed + one.remaining : 0;
    const state = all && move.state !== "moved" ? h("progress", { max: 1, value: one.processed / all, "aria-label": `${move.guest}: ${Math.round((one.processed / all) * 100)} %` }) : move.state + (move.error ? `: ${move.error}` : "");
    return [move.guest, `${move.cores.join(", ")}${move.pin_verified === false ? " (not pinned)" : ""}`, state, seconds(move.elapsed_s),
      move.downtime_ms === null ? "–" : `${Math.round(move.downtime_ms)} ms`, move.bytes === null ? "–" : bytes(move.bytes)];
  }), "None chosen yet.");
}

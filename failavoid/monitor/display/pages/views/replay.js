// A recorded evacuation once more: the rack goes through the values that were seen, and its guests move as they did.

import { ask } from "../access.js";
import { UNKNOWN, decode } from "../copy.js";
import { clock, evacuationLink, h, hostLink } from "../dom.js";
import { scene } from "../scene.js";
import { span, timeline } from "../timeline.js";

const SPEEDS = [1, 4, 16];

export function replayView({ copy, page, again }, id) {
  let recording = null, begun = false, at = 0, last = null, playing = false, speed = 1, wanted;
  const note = h("p.soft", { role: "status" }, "Fetching the recording…"), picture = h("div"), when = h("span.soft");
  const play = h("button.act", { type: "button", onclick: () => run(!playing) }, "Play");
  const slider = h("input", { type: "range", min: 0, max: 1, step: "any", value: 0, "aria-label": "Moment", oninput: () => show(Number(slider.value)) });
  const pace = h("select", { "aria-label": "Speed", onchange: () => { speed = Number(pace.value); } }, SPEEDS.map((one) => h("option", { value: one }, `${one} ×`)));
  page.replaceChildren(h("h1", {}, "Replay"), h("p.lead", {}, evacuationLink(id)), note, h("div.replay", {}, play, slider, pace), when, h("h2", {}, "Timeline"), picture);

  ask(`/live/evacuations/${id}/recording`).then((found) => {
    recording = { ...found, columns: new Map(found.hosts.map((host, column) => [host, column])), bytes: found.frames.map(decode) };
    begin();
  }).catch((error) => {
    note.className = "bad";
    note.textContent = error.message;
  });

  /** Once both the recording and the evacuation are there. */
  function begin() {
    const one = copy.get("evacuation", id), times = recording?.times;
    if (begun || !one || !times) return;
    begun = true;
    if (!times.length) {
      note.textContent = "Nothing is kept of that time: the monitor's archive has gone beyond it, or there is none (archive_mb).";
      return;
    }
    note.replaceChildren(hostLink(one.host), ` was left for ${one.spare ?? "a spare that was never found"}. Guests of other evacuations are where they are now.`);
    [slider.min, slider.max] = [times[0], times.at(-1)];
    show(times[0]);
    run(true);
  }

  function show(time) {
    at = time;
    slider.value = time;
    when.textContent = clock(time);
    const one = copy.get("evacuation", id);
    if (one) picture.replaceChildren(timeline(one, span(one, time)[1], time));
    again();
  }

  function run(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    last = null;
    cancelAnimationFrame(wanted);
    if (!on || !recording?.times.length) return;
    if (at >= recording.times.at(-1)) show(recording.times[0]);
    wanted = requestAnimationFrame(tick);
  }

  function tick(now) {
    if (last !== null) show(Math.min(at + ((now - last) / 1000) * speed, recording.times.at(-1)));
    last = now;
    if (at >= recording.times.at(-1)) run(false);
    else wanted = requestAnimationFrame(tick);
  }

  return {
    kinds: ["evacuation"],
    draw: begin,
    close: () => run(false),
    /** The rack as it was at this moment. */
    scene: () => (begun && recording.times.length ? past(copy, copy.get("evacuation", id), recording, at) : null),
  };
}

/** The scene of a moment: steps and moves tell where the evacuation's guests were, the recording each host's value. */
function past(copy, evacuation, recording, at) {
  const frame = recording.bytes[Math.max(0, recording.times.findLastIndex((time) => time <= at))];
  const done = (name) => evacuation.steps.find((step) => step.name === name && step.done !== null)?.done ?? Infinity;
  const begun = (name) => evacuation.steps.find((step) => step.name === name)?.begun ?? Infinity;
  const moved = at >= done("migrating"), moving = at >= begun("migrating") && !moved, released = at >= done("released");
  const moves = evacuation.migrations.filter((move) => move.state === "moved");
  const guests = new Map(moves.map((move) => [move.guest, move]));
  const hosts = new Map(copy.all("host"));
  const put = (name, pool) => hosts.has(name) && hosts.set(name, { ...hosts.get(name), pool });
  if (evacuation.spare) put(evacuation.spare, moved ? "allocated" : "free");
  put(evacuation.host, at >= done("retired") ? "defunct" : at >= (evacuation.alarm?.time ?? begun("alarm")) ? "suspect" : "allocated");
  const rank = (name) => copy.get("job", evacuation.job)?.guests.indexOf(name) ?? -1;
  return scene({
    hosts, recorded: true, moves: moving ? moves : [],
    left: new Set(at >= (evacuation.alarm?.time ?? begun("alarm")) && !released ? [evacuation.host] : []),
    spares: new Set(evacuation.spare && at >= done("leased") && !released ? [evacuation.spare] : []),
    jobHosts: null,
    guestsOf: (host) => [
      ...copy.guestsOf(host).filter((guest) => !guests.has(guest.name)),
      ...moves.filter((move) => (moved ? move.destination : move.source) === host)
        .map((move) => ({ name: move.guest, rank: rank(move.guest) < 0 ? null : rank(move.guest), job: evacuation.job, state: "ready" })),
    ],
    byteOf: (host) => frame?.[recording.columns.get(host)] ?? UNKNOWN,
  });
}

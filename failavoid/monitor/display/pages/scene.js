// What the rack is to draw: as things are now, or as they were at a moment of a recorded evacuation.

import { UNKNOWN } from "./copy.js";

const short = (guest) => guest.replace(/^([a-z-]*?)0*(\d+)$/, "$1$2");

/** The scene of this moment. `jobHosts` are the hosts of the job that was picked, or null. */
export function live(copy, jobHosts) {
  const open = copy.open();
  const moves = open.flatMap((one) => (one.state === "MIGRATING" || one.state === "VERIFIED" ? one.migrations : []))
    .filter((move) => move.state === "planned" || move.state === "running" || move.state === "moved");
  const spares = new Set(open.map((one) => one.spare).filter(Boolean));
  const left = new Set(open.map((one) => one.host));
  return scene({
    hosts: copy.all("host"), moves, left, spares, jobHosts,
    guestsOf: (host) => copy.guestsOf(host),
    byteOf: (host) => {
      const column = copy.get("host", host)?.column ?? -1;
      return column < 0 || column >= copy.values.length ? UNKNOWN : copy.values[column];
    },
  });
}

/** Of `state` (live's or a recording's), what the rack asks for. */
export function scene({ hosts, moves, left, spares, jobHosts, guestsOf, byteOf, recorded = false }) {
  const going = new Map(moves.map((move) => [move.guest, move]));
  const coming = new Map();
  for (const move of moves) coming.set(move.destination, [...(coming.get(move.destination) ?? []), move]);
  return {
    hosts, byteOf, left, leased: spares, recorded,
    moves: [...new Map(moves.map((move) => [`${move.source} ${move.destination}`, move])).values()],
    dim: (host) => jobHosts !== null && !jobHosts.has(host),
    marksOf(host) {
      const here = guestsOf(host).map((guest) => ({
        text: guest.rank === null ? short(guest.name) : String(guest.rank),
        kind: guest.state === "lost" ? "lost" : going.get(guest.name)?.source === host ? "leaving"
          : going.get(guest.name)?.destination === host ? "moved" : guest.job ? "here" : "idle",
      }));
      const ranks = new Map((coming.get(host) ?? []).map((move) => [move.guest, guestsOf(move.source).find((one) => one.name === move.guest)]));
      const there = [...ranks].filter(([, guest]) => guest)
        .map(([name, guest]) => ({ text: guest.rank === null ? short(name) : String(guest.rank), kind: "coming" }));
      return [...here, ...there];
    },
    tagOf(host) {
      const { pool, reserved } = hosts.get(host);
      if (left.has(host)) return "being left";
      if (spares.has(host)) return "leased spare";
      return pool === "allocated" ? "" : pool === "free" ? (reserved ? "reserved spare" : "spare") : pool;
    },
  };
}

// Where hosts are drawn: cabinets by failure domain, as the inventory declares them, each with its hosts in rows.

import { natural } from "./dom.js";

export const TILE = { w: 124, h: 66, gap: 12 };
const EDGE = 14, HEAD = 26, AISLE = 26;
const KINDS = ["rack", "chassis", "cabinet", "enclosure", "room"]; // what people look for first; else the first there is

/** {tiles: Map host -> {x, y}, cabinets: [{name, x, y, w, h}], w, h, order: [host]}. `aspect` is width by height. */
export function place(hosts, aspect) {
  const names = [...hosts.keys()].sort(natural);
  const kind = domainKind(hosts);
  const groups = new Map();
  for (const name of names) {
    const group = (kind && hosts.get(name).domains[kind]) || "";
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(name);
  }
  const inner = kind === "rack" ? "chassis" : null;
  const ordered = [...groups].sort(([a], [b]) => natural(a, b)).map(([name, members]) => [name, inner
    ? [...members].sort((a, b) => natural(hosts.get(a).domains[inner] ?? "", hosts.get(b).domains[inner] ?? "") || natural(a, b)) : members]);
  const one = ordered.length === 1;
  const largest = Math.max(1, ...ordered.map(([, members]) => members.length));
  const across = Math.max(1, Math.round(Math.sqrt(largest * (TILE.h / TILE.w) * (one ? aspect : 0.8))));
  const down = Math.ceil(largest / across);
  const w = across * (TILE.w + TILE.gap) - TILE.gap + 2 * EDGE;
  const h = down * (TILE.h + TILE.gap) - TILE.gap + EDGE + HEAD;
  const columns = Math.max(1, Math.min(ordered.length, Math.round(Math.sqrt(ordered.length * (h / w) * aspect))));
  const tiles = new Map(), cabinets = [];
  ordered.forEach(([name, members], number) => {
    const x = (number % columns) * (w + AISLE), y = Math.floor(number / columns) * (h + AISLE);
    cabinets.push({ name: name ? `${kind} ${name}` : kind ? `no ${kind}` : "", x, y, w, h });
    members.forEach((host, at) => tiles.set(host, {
      x: x + EDGE + (at % across) * (TILE.w + TILE.gap),
      y: y + HEAD + Math.floor(at / across) * (TILE.h + TILE.gap),
    }));
  });
  const rows = Math.ceil(ordered.length / columns);
  return { tiles, cabinets, w: columns * (w + AISLE) - AISLE, h: rows * (h + AISLE) - AISLE, order: [...tiles.keys()] };
}

function domainKind(hosts) {
  const kinds = new Set();
  for (const host of hosts.values()) for (const kind of Object.keys(host.domains)) kinds.add(kind);
  return KINDS.find((kind) => kinds.has(kind)) ?? [...kinds][0] ?? null;
}

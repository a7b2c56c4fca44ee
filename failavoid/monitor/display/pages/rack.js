// The machine on a canvas: every host with its share, its cores, its guests; guests on their way in both places.

import { colour, fill, ink, step } from "./colours.js";
import { UNKNOWN } from "./copy.js";
import { percent } from "./dom.js";
import { TILE, place } from "./layout.js";
import { View } from "./view.js";

const NEAR = 0.55, MIDDLE = 0.24; // zoom from which on cores and guests, and names, can be read
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
export const CORES_AT_ONCE = 400;

/** Where the line from a tile's middle to a point leaves the tile, and so much further. */
function edge({ x, y }, px, py, further) {
  const cx = x + TILE.w / 2, cy = y + TILE.h / 2, dx = px - cx || 1e-9, dy = py - cy || 1e-9, length = Math.hypot(dx, dy);
  const part = Math.min((TILE.w / 2 + 5) / Math.abs(dx), (TILE.h / 2 + 5) / Math.abs(dy)) + further / length;
  return [cx + dx * part, cy + dy * part];
}

/** A bow from one tile to another, as begin, middle and end; room for the arrow's head is left before the second. */
function curve(from, to, head) {
  const dx = to.x - from.x, dy = to.y - from.y;
  if (Math.abs(dx) > TILE.w + TILE.gap || Math.abs(dy) > TILE.h + TILE.gap) {
    const length = Math.hypot(dx, dy), bend = Math.min(60, length / 5);
    const mx = from.x + (dx + TILE.w) / 2 - (dy / length) * bend, my = from.y + (dy + TILE.h) / 2 + (dx / length) * bend;
    return [...edge(from, mx, my, 0), mx, my, ...edge(to, mx, my, head)];
  }
  // between neighbours there is no room: round the outside, above or on the left; to a diagonal one from the near corner
  const fx = from.x + TILE.w / 2, fy = from.y + TILE.h / 2, tx = to.x + TILE.w / 2, ty = to.y + TILE.h / 2, off = 6 + head;
  if (!dy) return [fx, from.y - 6, tx, to.y - off - 2 * head, tx, to.y - off];
  if (!dx) return [from.x - 6, fy, to.x - off - 2 * head, ty, to.x - off, ty];
  const side = Math.sign(dx), corner = fx + side * (TILE.w / 2 - 12);
  return [corner, fy + Math.sign(dy) * (TILE.h / 2 + 6), corner, ty, tx - side * (TILE.w / 2 + off), ty];
}

export class Rack {
  /** `scene()` gives what scene.js makes; `pick(host)` is told of a click. */
  constructor(canvas, scene, pick) {
    Object.assign(this, { canvas, scene, pick, selected: null, cores: new Map(), placed: place(new Map(), 1), drawn: 0 });
    this.context = canvas.getContext("2d", { alpha: false });
    this.view = new View(canvas, () => this.ask());
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    canvas.addEventListener("click", (event) => {
      const host = this.at(event.offsetX, event.offsetY);
      if (host && this.view.dragged < 6) pick(host);
    });
    canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.resize();
  }

  resize() {
    const { clientWidth: w, clientHeight: h } = this.canvas.parentElement, density = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(w * density));
    this.canvas.height = Math.max(1, Math.round(h * density));
    this.canvas.style.width = `${w}px`;
    this.canvas.style.height = `${h}px`;
    this.density = density;
    this.arrange();
    this.view.resize(w, h);
    this.ask();
  }

  /** Place the hosts anew: some have come or gone. */
  arrange() {
    const { clientWidth: w, clientHeight: h } = this.canvas.parentElement;
    this.placed = place(this.scene().hosts, w / Math.max(1, h));
    this.view.show(this.placed);
  }

  /** Draw soon. */
  ask() {
    this.wanted ??= requestAnimationFrame(() => {
      this.wanted = undefined;
      this.draw();
    });
  }

  /** The hosts that are seen. */
  visible() {
    const { view, placed } = this;
    const from = view.toWorld(0, 0), to = view.toWorld(view.w, view.h);
    return placed.order.filter((name) => {
      const tile = placed.tiles.get(name);
      return tile.x + TILE.w > from.x && tile.x < to.x && tile.y + TILE.h > from.y && tile.y < to.y;
    });
  }

  /** The hosts whose cores can be told apart now. */
  wantsCores() {
    if (this.view.zoom < NEAR) return [];
    const seen = this.visible();
    return seen.length <= CORES_AT_ONCE ? seen : [];
  }

  at(x, y) {
    const point = this.view.toWorld(x, y);
    for (const [name, tile] of this.placed.tiles) {
      if (point.x >= tile.x && point.x <= tile.x + TILE.w && point.y >= tile.y && point.y <= tile.y + TILE.h) return name;
    }
    return null;
  }

  hover(event) {
    const host = event.buttons ? null : this.at(event.offsetX, event.offsetY);
    this.canvas.style.cursor = host ? "pointer" : "grab";
    const state = host && this.scene().hosts.get(host);
    this.canvas.title = state ? `${host}: ${percent(this.share(host))}, ${state.pool}${state.reason ? `, ${state.reason}` : ""}` : "";
  }

  share(host) {
    const byte = this.scene().byteOf(host);
    return byte === UNKNOWN ? NaN : byte / 254;
  }

  /** Go to the next host in a direction, as the arrow keys do. */
  step(dx, dy) {
    const { tiles, order } = this.placed;
    const here = tiles.get(this.selected);
    if (!here) return order[0];
    let best = null, least = Infinity;
    for (const [name, tile] of tiles) {
      const along = dx ? (tile.x - here.x) * dx : (tile.y - here.y) * dy;
      const aside = dx ? Math.abs(tile.y - here.y) : Math.abs(tile.x - here.x);
      if (along > 1 && along + aside * 3 < least) [best, least] = [name, along + aside * 3];
    }
    return best ?? this.selected;
  }

  select(host) {
    this.selected = host;
    const tile = this.placed.tiles.get(host);
    if (tile) this.view.reveal(tile, TILE.w, TILE.h);
    this.ask();
  }

  draw() {
    const began = performance.now();
    const { context: c, view, density, placed } = this, scene = this.scene();
    c.setTransform(density, 0, 0, density, 0, 0);
    c.fillStyle = colour("paper");
    c.fillRect(0, 0, view.w, view.h);
    c.setTransform(density * view.zoom, 0, 0, density * view.zoom, density * view.x, density * view.y);
    for (const cabinet of placed.cabinets) this.cabinet(cabinet);
    const seen = this.visible();
    this.fills(seen, scene);
    for (const name of seen) this.state(name, placed.tiles.get(name), scene);
    if (view.zoom >= MIDDLE) for (const name of seen) this.words(name, placed.tiles.get(name), scene);
    for (const move of scene.moves) this.way(move);
    this.drawn = performance.now() - began;
  }

  cabinet({ name, x, y, w, h }) {
    const c = this.context;
    c.fillStyle = colour("card");
    c.strokeStyle = colour("line");
    c.lineWidth = 1 / this.view.zoom;
    c.fillRect(x, y, w, h);
    c.strokeRect(x, y, w, h);
    const size = Math.min(Math.max(13, 11 / this.view.zoom), w / Math.max(6, name.length * 0.62));
    if (size * this.view.zoom < 7) return;
    c.fillStyle = colour("soft");
    c.font = `${size}px ${FONT}`;
    c.textAlign = "left";
    c.fillText(name, x + 14, y + 18, w - 20);
  }

  /** All hosts' colours, those of one colour together: changing the colour is what costs. */
  fills(seen, scene) {
    const { context: c, placed } = this, byColour = Array.from({ length: 256 }, () => []);
    for (const name of seen) byColour[scene.byteOf(name)].push(name);
    byColour.forEach((names, byte) => {
      if (!names.length) return;
      c.fillStyle = byte === UNKNOWN ? colour("faint") : fill(byte);
      for (const name of names) {
        const { x, y } = placed.tiles.get(name);
        c.globalAlpha = scene.dim(name) ? 0.22 : 1;
        c.fillRect(x, y, TILE.w, TILE.h);
      }
    });
    c.globalAlpha = 1;
  }

  /** What a host is, told by lines and not by colour alone. */
  state(name, { x, y }, scene) {
    const { context: c } = this, host = scene.hosts.get(name), hair = 1 / this.view.zoom;
    c.setLineDash([]);
    c.globalAlpha = scene.dim(name) ? 0.35 : 1;
    if (host.pool === "free") {
      c.strokeStyle = colour("soft");
      c.lineWidth = Math.max(hair, 1.2);
      c.setLineDash([6, 5]);
      if (this.view.zoom > 0.12) c.strokeRect(x + 1, y + 1, TILE.w - 2, TILE.h - 2);
    } else if (host.pool === "defunct") {
      c.strokeStyle = colour("bad");
      c.lineWidth = Math.max(2 * hair, 3);
      if (this.view.zoom < NEAR) { // nearer, the word is there
        c.beginPath();
        c.moveTo(x, y + TILE.h);
        c.lineTo(x + TILE.w, y);
        c.stroke();
      }
      c.strokeRect(x + 1, y + 1, TILE.w - 2, TILE.h - 2);
    } else if (host.pool === "suspect" || scene.left.has(name)) {
      c.strokeStyle = colour("bad");
      c.lineWidth = Math.max(2.5 * hair, 4);
      c.strokeRect(x - 3, y - 3, TILE.w + 6, TILE.h + 6);
    }
    if (scene.leased.has(name)) {
      c.setLineDash([10, 5]);
      c.strokeStyle = colour("spare");
      c.lineWidth = Math.max(2.5 * hair, 4);
      c.strokeRect(x - 3, y - 3, TILE.w + 6, TILE.h + 6);
    }
    if (name === this.selected) {
      c.setLineDash([]);
      c.strokeStyle = colour("ink");
      c.lineWidth = Math.max(2 * hair, 2.5);
      c.strokeRect(x - 6, y - 6, TILE.w + 12, TILE.h + 12);
    }
    c.setLineDash([]);
    c.globalAlpha = 1;
  }

  words(name, { x, y }, scene) {
    const { context: c, view } = this, byte = scene.byteOf(name), near = view.zoom >= NEAR;
    c.globalAlpha = scene.dim(name) ? 0.35 : 1;
    c.fillStyle = byte === UNKNOWN ? colour("ink") : ink(byte);
    c.textAlign = "left";
    c.font = `600 ${near ? 13 : 22}px ${FONT}`;
    c.fillText(name, x + 8, y + (near ? 19 : 28), TILE.w - (near ? 62 : 12));
    c.textAlign = near ? "right" : "left";
    c.font = `700 ${near ? 13 : 24}px ${FONT}`;
    c.fillText(byte === UNKNOWN ? "silent" : percent(byte / 254), near ? x + TILE.w - 8 : x + 8, y + (near ? 19 : 56));
    if (near) {
      if (!scene.recorded) this.drawCores(this.cores.get(name) ?? [], x + 8, y + 27);
      this.drawGuests(scene.marksOf(name), x + 8, y + 44);
      this.tag(scene.tagOf(name), x, y);
    }
    c.globalAlpha = 1;
  }

  drawCores(cores, x, y) {
    const c = this.context, width = Math.min(12, (TILE.w - 16) / Math.max(1, cores.length));
    cores.forEach((use, number) => {
      c.fillStyle = fill(step(use));
      c.fillRect(x + number * width, y, Math.max(0.8, width - Math.min(2, width * 0.25)), 9);
      c.strokeStyle = colour("card");
      c.lineWidth = 0.7;
      if (width > 4) c.strokeRect(x + number * width, y, width - 2, 9);
    });
  }

  /** The guests, with the rank that runs in each; `marks` are {text, kind: here | leaving | coming | moved | lost | idle}. */
  drawGuests(marks, x, y) {
    const c = this.context, width = Math.min(30, (TILE.w - 16 + 3) / Math.max(1, marks.length) - 3);
    marks.forEach(({ text, kind }, number) => {
      const left = x + number * (width + 3);
      c.beginPath();
      c.roundRect(left, y, width, 15, 4);
      const leaving = kind === "leaving", coming = kind === "coming";
      c.fillStyle = kind === "moved" ? colour("spare") : colour("card");
      const alpha = c.globalAlpha;
      if (leaving || kind === "idle") c.globalAlpha = alpha * 0.55;
      c.fill();
      c.lineWidth = leaving || coming ? 1.8 : 0.8;
      c.setLineDash(leaving || coming ? [3, 2] : []);
      c.strokeStyle = leaving || coming ? colour("spare") : kind === "lost" ? colour("bad") : colour("soft");
      c.stroke();
      c.setLineDash([]);
      c.fillStyle = kind === "moved" ? colour("card") : coming ? colour("spare") : kind === "lost" ? colour("bad") : colour("ink");
      c.font = `${coming ? 700 : 500} 10.5px ${FONT}`;
      c.textAlign = "center";
      if (width > 9) c.fillText(text, left + width / 2, y + 11, width - 2);
      c.globalAlpha = alpha;
    });
  }

  tag(word, x, y) {
    if (!word) return;
    const c = this.context, bad = word === "defunct" || word === "suspect";
    c.font = `600 10.5px ${FONT}`;
    const width = c.measureText(word).width + 12;
    c.beginPath();
    c.roundRect(x + TILE.w - width + 4, y + TILE.h - 6, width, 15, 7);
    c.fillStyle = bad ? colour("bad") : colour("card");
    c.fill();
    c.strokeStyle = bad ? colour("bad") : colour("soft");
    c.lineWidth = 0.8;
    c.stroke();
    c.fillStyle = bad ? colour("card") : colour("ink");
    c.textAlign = "center";
    c.fillText(word, x + TILE.w - width / 2 + 4, y + TILE.h + 5);
  }

  /** From where guests leave to where they go. */
  way({ source, destination }) {
    const from = this.placed.tiles.get(source), to = this.placed.tiles.get(destination);
    if (!from || !to) return;
    const c = this.context, hair = 1 / this.view.zoom, head = Math.max(14, 9 * hair);
    const [x0, y0, mx, my, x1, y1] = curve(from, to, head);
    const angle = Math.atan2(y1 - my, x1 - mx);
    for (const [name, width] of [["card", 9], ["spare", 4.5]]) {
      c.strokeStyle = c.fillStyle = colour(name);
      c.lineWidth = Math.max(width / 2 * hair, width);
      c.beginPath();
      c.moveTo(x0, y0);
      c.quadraticCurveTo(mx, my, x1, y1);
      c.stroke();
    }
    c.beginPath();
    c.moveTo(x1 + Math.cos(angle) * head, y1 + Math.sin(angle) * head);
    for (const turn of [2.4, -2.4]) c.lineTo(x1 + Math.cos(angle + turn) * head, y1 + Math.sin(angle + turn) * head);
    c.fill();
  }
}

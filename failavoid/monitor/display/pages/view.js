// What part of the machine is seen: zoom and place, by mouse, fingers and keys.

const LARGEST = 2.4, MARGIN = 16, FOOT = 18; // the foot is the line about the keys

export class View {
  constructor(canvas, changed) {
    Object.assign(this, { canvas, changed, zoom: 1, x: 0, y: 0, w: 1, h: 1, world: { w: 1, h: 1 }, touched: false });
    this.fingers = new Map();
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      this.fingers.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
      this.dragged = 0;
    });
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.fingers.delete(event.pointerId));
  }

  move(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const others = [...this.fingers.values()].filter((finger) => finger !== before);
    if (others.length) {
      const [other] = others;
      const apart = (finger) => Math.hypot(finger.offsetX - other.offsetX, finger.offsetY - other.offsetY) || 1;
      this.zoomBy(apart(event) / apart(before), (event.offsetX + other.offsetX) / 2, (event.offsetY + other.offsetY) / 2);
    }
    const dx = event.offsetX - before.offsetX, dy = event.offsetY - before.offsetY;
    this.dragged += Math.abs(dx) + Math.abs(dy);
    this.fingers.set(event.pointerId, event);
    if (others.length) return;
    this.x += dx;
    this.y += dy;
    this.touched = true;
    this.changed();
  }

  /** All of a world of this size, unless somebody has chosen what to see. */
  show(world, again = false) {
    this.world = world;
    if (this.touched && !again) return;
    this.zoom = this.least();
    this.x = (this.w - world.w * this.zoom) / 2;
    this.y = Math.max(MARGIN, (this.h - FOOT - world.h * this.zoom) / 2);
    this.touched = false;
    this.changed();
  }

  resize(w, h) {
    Object.assign(this, { w, h });
    this.show(this.world);
  }

  least() {
    return Math.min((this.w - 2 * MARGIN) / this.world.w, (this.h - 2 * MARGIN - FOOT) / this.world.h, 1.6);
  }

  zoomBy(factor, x = this.w / 2, y = this.h / 2) {
    const zoom = Math.min(Math.max(this.zoom * factor, this.least()), LARGEST);
    this.x = x - (x - this.x) * (zoom / this.zoom);
    this.y = y - (y - this.y) * (zoom / this.zoom);
    this.zoom = zoom;
    this.touched = zoom > this.least() * 1.001;
    if (!this.touched) this.show(this.world);
    this.changed();
  }

  /** Bring a rectangle of the world into sight. */
  reveal({ x, y }, w, h) {
    const left = x * this.zoom + this.x, top = y * this.zoom + this.y;
    const shift = (begin, size, room) => (begin < MARGIN ? MARGIN - begin : begin + size > room - MARGIN ? room - MARGIN - begin - size : 0);
    const dx = shift(left, w * this.zoom, this.w), dy = shift(top, h * this.zoom, this.h);
    if (!dx && !dy) return;
    this.x += dx;
    this.y += dy;
    this.touched = true;
    this.changed();
  }

  toWorld(x, y) {
    return { x: (x - this.x) / this.zoom, y: (y - this.y) / this.zoom };
  }
}

// This page's copy of the monitor's documents, and the last values of all hosts.

export const UNKNOWN = 255, STEPS = 254;

export class Copy {
  constructor() {
    this.kinds = new Map();
    this.values = new Uint8Array(0);
    this.time = 0;
    this.metric = "";
    this.version = 0;
  }

  /** All documents of a kind, a Map by name. */
  all(kind) {
    if (!this.kinds.has(kind)) this.kinds.set(kind, new Map());
    return this.kinds.get(kind);
  }

  get(kind, name) {
    return this.all(kind).get(name);
  }

  /** Take the event `documents`; returns the kinds that have changed. */
  take({ reset, put, gone }) {
    const changed = new Set([...Object.keys(put), ...Object.keys(gone)]);
    if (reset) {
      for (const kind of this.kinds.keys()) changed.add(kind);
      this.kinds.forEach((documents) => documents.clear());
    }
    for (const [kind, names] of Object.entries(gone)) names.forEach((name) => this.all(kind).delete(name));
    for (const [kind, documents] of Object.entries(put)) {
      for (const [name, document] of Object.entries(documents)) this.all(kind).set(name, document);
    }
    this.version += 1;
    return changed;
  }

  /** Take the event `values`. */
  takeValues({ time, metric, values }) {
    Object.assign(this, { time, metric, values: decode(values) });
  }

  /** A host's share of 0..1 on the shown metric's scale, NaN if it is silent. */
  share(name) {
    const column = this.get("host", name)?.column ?? -1;
    const step = column < 0 || column >= this.values.length ? UNKNOWN : this.values[column];
    return step === UNKNOWN ? NaN : step / STEPS;
  }

  guestsOf(host) {
    return this.byHost().get(host) ?? [];
  }

  /** Guests by host, made anew when documents have changed. */
  byHost() {
    if (this.guestsVersion !== this.version) {
      this.guestsVersion = this.version;
      this.guests = new Map();
      for (const [name, guest] of this.all("guest")) {
        if (!this.guests.has(guest.host)) this.guests.set(guest.host, []);
        this.guests.get(guest.host).push({ name, ...guest });
      }
    }
    return this.guests;
  }

  /** The hosts of a job: those of its guests, or its own. */
  hostsOf(job) {
    const found = new Set(this.get("job", job)?.hosts ?? []);
    for (const guest of this.all("guest").values()) if (guest.job === job) found.add(guest.host);
    return found;
  }

  /** Evacuations under way. */
  open() {
    return [...this.all("evacuation").values()].filter((one) => !ENDS.has(one.state));
  }
}

export const ENDS = new Set(["RETIRED", "MOVED", "CHECKPOINTED", "CANCELLED", "FAILED"]);

export function decode(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) found[place] = raw.charCodeAt(place);
  return found;
}

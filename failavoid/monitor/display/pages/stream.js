// Server-sent events over fetch: EventSource can't send the header with the token. Comes back by itself, and says from
// which event on (Last-Event-ID).

import { headers } from "./access.js";

const FIRST_WAIT = 500, LONGEST_WAIT = 8000; // ms between tries
const QUIET = 40000; // ms without a sign of life, after which the line is taken for dead

export class Stream {
  /** `hear(event, data)` for each event, `say(state)` with open | lost | refused. */
  constructor(path, hear, say) {
    Object.assign(this, { path, hear, say, last: "", wait: FIRST_WAIT, bytes: 0, ended: false });
    this.run();
  }

  close() {
    this.ended = true;
    this.abort?.abort();
  }

  async run() {
    while (!this.ended) {
      try {
        if (await this.listen() === "refused") return;
      } catch { /* the service restarts, or the network is down: try on */ }
      if (this.ended) return;
      this.say("lost");
      await new Promise((done) => setTimeout(done, this.wait));
      this.wait = Math.min(this.wait * 2, LONGEST_WAIT);
    }
  }

  async listen() {
    this.abort = new AbortController();
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.abort.abort(), QUIET);
    };
    alive();
    try {
      const answer = await fetch(this.path, { headers: { ...headers(), "Last-Event-ID": this.last }, signal: this.abort.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        this.say("refused", (await answer.json().catch(() => ({}))).detail);
        return "refused";
      }
      if (!answer.ok) throw new Error(answer.statusText);
      this.say("open");
      this.wait = FIRST_WAIT;
      const reader = answer.body.getReader(), text = new TextDecoder();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return "ended";
        alive();
        this.bytes += value.length;
        rest += text.decode(value, { stream: true });
        const events = rest.split("\n\n");
        rest = events.pop();
        events.forEach((event) => this.take(event));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  take(event) {
    let name = "message", data = "";
    for (const line of event.split("\n")) {
      if (line.startsWith("id: ")) this.last = line.slice(4);
      else if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (data) this.hear(name, JSON.parse(data));
  }
}

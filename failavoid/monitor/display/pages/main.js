// The page as a whole: the token, the stream, which view is open, keys.

import { ask, setToken, token } from "./access.js";
import { fill, onChange } from "./colours.js";
import { worded } from "./charts.js";
import { Copy } from "./copy.js";
import { h, percent } from "./dom.js";
import { Rack } from "./rack.js";
import { live } from "./scene.js";
import { Stream } from "./stream.js";
import { evacuationView, evacuationsView } from "./views/evacuation.js";
import { hostView } from "./views/host.js";
import { jobView, jobsView } from "./views/job.js";
import { learnedView } from "./views/learned.js";
import { machineView } from "./views/machine.js";
import { replayView } from "./views/replay.js";

const POOLS = ["free", "allocated", "suspect", "defunct"];
const find = (id) => document.getElementById(id);
const copy = new Copy(), page = find("page"), canvas = find("rack");
const FIRST = { name: "", label: "memory in use", unit: "%", low: 0, high: 1 };
let stream, view = { kinds: [], draw() {} }, now = null, coresTimer;

const rack = new Rack(canvas, () => (now ??= view.scene?.() ?? live(copy, view.jobHosts?.() ?? null)), (host) => { location.hash = `#/host/${host}`; });
const again = () => {
  now = null;
  rack.ask();
};
const context = { copy, page, rack, again, metric: () => metrics().find((one) => one.name === copy.metric) ?? FIRST };
const metrics = () => copy.get("service", "monitor")?.metrics ?? [];

// -- views ---------------------------------------------------------------------------------------------------------

const ROUTES = [
  [/^#\/host\/([^/]+)$/, hostView], [/^#\/job\/([^/]+)$/, jobView], [/^#\/jobs$/, jobsView], [/^#\/evacuations$/, evacuationsView],
  [/^#\/evacuation\/([^/]+)\/replay$/, replayView], [/^#\/evacuation\/([^/]+)$/, evacuationView], [/^#\/learned$/, learnedView], [/.*/, machineView],
];

function go() {
  view.close?.();
  const hash = location.hash || "#/";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === hash) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const [route, make] = ROUTES.find(([pattern]) => pattern.test(hash));
  const name = route.exec(hash)[1] && decodeURIComponent(route.exec(hash)[1]);
  page.scrollTop = 0;
  view = make(context, name);
  const host = make === hostView ? name : null;
  if (host) rack.select(host);
  else if (make === machineView) rack.select(null);
  document.title = name ? `${name} · failavoid` : "failavoid";
  redraw();
}

function redraw() {
  again();
  view.draw();
  view.tick?.();
}

// -- what the monitor sends ----------------------------------------------------------------------------------------

/** What hosts are drawn where for. */
function places() {
  return JSON.stringify([...copy.all("host")].map(([name, host]) => [name, host.domains]));
}

function hear(event, data) {
  if (event === "documents") {
    const before = places(), changed = copy.take(data);
    now = null;
    if (changed.has("host") && places() !== before) rack.arrange();
    if (changed.has("host")) pools();
    if (changed.has("host") || changed.has("guest") || changed.has("job")) names();
    if (changed.has("service")) choose();
    if (view.kinds.some((kind) => changed.has(kind))) view.draw();
  } else if (event === "values") {
    copy.takeValues(data);
    now = null;
    view.tick?.();
    find("link").title = `${(stream.bytes / 1024).toFixed(0)} KiB so far`;
  }
  rack.ask();
}

function say(state, why) {
  const link = find("link");
  link.textContent = { open: "live", lost: "lost: trying on", refused: "a token is needed" }[state];
  link.classList.toggle("lost", state !== "open");
  if (state === "refused") askForToken(why ?? "");
}

function connect() {
  stream?.close();
  const metric = find("metric").value;
  stream = new Stream(`/live/stream${metric ? `?metric=${metric}` : ""}`, hear, say);
}

/** The blocks of cores that are large enough to be seen. */
async function lookAtCores() {
  clearTimeout(coresTimer);
  const hosts = new Set([...rack.wantsCores(), ...(view.cores ?? [])]);
  if (hosts.size && token() && !document.hidden) {
    try {
      for (const { host, cores } of await ask(`/live/cores?hosts=${[...hosts].join(",")}`)) rack.cores.set(host, cores);
      view.tick?.();
      rack.ask();
    } catch { /* the stream tells of a service that is away */ }
  }
  coresTimer = setTimeout(lookAtCores, (copy.get("service", "monitor")?.interval_s ?? 1) * 1000);
}

// -- the head of the page ------------------------------------------------------------------------------------------

function pools() {
  const counts = Object.fromEntries(POOLS.map((pool) => [pool, 0]));
  for (const host of copy.all("host").values()) counts[host.pool] += 1;
  find("pools").replaceChildren(...POOLS.map((pool) => h("span", {}, h("b", {}, counts[pool]), ` ${pool}`)));
}

function names() {
  if (copy.all("host").size > 2000) return; // a list that long helps nobody; what is typed in full is found
  find("names").replaceChildren(...["host", "guest", "job"].flatMap((kind) => [...copy.all(kind).keys()]).map((name) => h("option", { value: name })));
}

function choose() {
  const select = find("metric"), chosen = select.value || copy.get("service", "monitor")?.metric;
  if (select.options.length !== metrics().length) select.replaceChildren(...metrics().map((one) => h("option", { value: one.name }, one.label)));
  select.value = chosen;
  scale();
}

function scale() {
  const ramp = h("canvas", { width: 80, height: 12, role: "img", "aria-label": "from low to high" }), metric = metrics().find((one) => one.name === find("metric").value) ?? FIRST;
  const brush = ramp.getContext("2d");
  for (let x = 0; x < 80; x++) {
    brush.fillStyle = fill(Math.round((x / 79) * 254));
    brush.fillRect(x, 0, 1, 12);
  }
  find("scale").replaceChildren(worded(metric, 0), ramp, worded(metric, 1));
}

function search() {
  const word = find("find").value.trim();
  if (copy.get("host", word)) location.hash = `#/host/${word}`;
  else if (copy.get("job", word)) location.hash = `#/job/${word}`;
  else if (copy.get("guest", word)) location.hash = `#/host/${copy.get("guest", word).host}`;
  else if (word) find("said").textContent = `There is no host, guest or job ${word}.`;
}

function askForToken(why) {
  find("ask-why").textContent = token() ? why : "";
  if (!find("ask").open) find("ask").showModal();
}

// -- keys ----------------------------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("ask").open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const onRack = document.activeElement === canvas;
  if (event.key === "/") find("find").focus();
  else if (event.key === "+" || event.key === "=") rack.view.zoomBy(1.3);
  else if (event.key === "-") rack.view.zoomBy(1 / 1.3);
  else if (event.key === "0") rack.view.show(rack.placed, true);
  else if (event.key === "Escape") location.hash = "#/";
  else if (onRack && ARROWS[event.key]) {
    rack.select(rack.step(...ARROWS[event.key]));
    const host = copy.get("host", rack.selected);
    if (host) find("said").textContent = `${rack.selected}, ${host.pool}, ${percent(copy.share(rack.selected))}, ${copy.guestsOf(rack.selected).length} guests`;
  } else if (onRack && event.key === "Enter" && rack.selected) location.hash = `#/host/${rack.selected}`;
  else return;
  event.preventDefault();
});

find("metric").addEventListener("change", () => {
  scale();
  connect();
  const once = stream.hear;
  stream.hear = (event, data) => { // views that draw the metric begin anew once it is there
    once(event, data);
    if (event === "values") {
      stream.hear = once;
      go();
    }
  };
});
find("find").addEventListener("change", search);
find("ask").addEventListener("close", () => {
  setToken(find("token").value);
  find("token").value = "";
  connect();
});
find("ask").addEventListener("cancel", (event) => event.preventDefault());
window.addEventListener("hashchange", go);
onChange(() => { scale(); go(); }); // charts keep the colours that they were made with
canvas.setAttribute("aria-label", "Hosts in their racks, coloured by the chosen metric");

// for measurements and tests
window.failavoid = { copy, rack, get stream() { return stream; } };

scale();
go();
if (token()) connect();
else askForToken("");
lookAtCores();

// Elements without a framework.

/** An element: `h("a.name", {href}, "text", another)`; what is null or false is left out. */
export function h(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  return fill(document.createElement(tag), classes, attributes, children);
}

/** The same, of SVG. */
export function svg(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), classes, attributes, children);
}

function fill(element, classes, attributes, children) {
  if (classes.length) element.classList.add(...classes);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...parts(...children));
  return element;
}

/** Children for `replaceChildren`: lists opened, what is null or false left out. */
export const parts = (...children) => children.flat(2).filter((child) => child !== null && child !== undefined && child !== false);

/** A table; a cell may be text or an element. */
export function table(columns, rows, nothing = "none") {
  if (!rows.length) return h("p.soft", {}, nothing);
  return h("table", {},
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell ?? ""))))));
}

/** Names and values, one below the other; what is empty is left out. */
export function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false)
    .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export const percent = (share) => (share === null || share === undefined || Number.isNaN(share) ? "–" : `${(share * 100).toFixed(share && share < 0.1 ? 1 : 0)} %`);
export const seconds = (value) => (value === null || value === undefined ? "–" : value < 10 ? `${value.toFixed(2)} s` : value < 120 ? `${value.toFixed(0)} s` : `${(value / 60).toFixed(0)} min`);
export const bytes = (value) => (value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`);
// local time, written as in logs (ISO 8601) whatever the browser's language, which is how Swedish writes it
export const clock = (time) => (time ? new Date(time * 1000).toLocaleTimeString("sv") : "–");
export const moment = (time) => (time ? new Date(time * 1000).toLocaleString("sv") : "–");

export const hostLink = (name) => h("a", { href: `#/host/${name}` }, name);
export const jobLink = (name) => (name ? h("a", { href: `#/job/${name}` }, name) : "–");
export const evacuationLink = (name) => h("a", { href: `#/evacuation/${name}` }, name);

/** Names in the order of people: host2 before host10. */
export const natural = new Intl.Collator("en", { numeric: true }).compare;

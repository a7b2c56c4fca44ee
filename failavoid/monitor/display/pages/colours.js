// Colours of shares: viridis (matplotlib's), which colour-blind people and grey printers can read; on light paper it
// is turned round, so that full is dark there and bright on dark paper.

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

const dark = matchMedia("(prefers-color-scheme: dark)");
let scale = [], inks = [], theme = {};

function make() {
  const stops = (dark.matches ? VIRIDIS : [...VIRIDIS].reverse()).map(rgb);
  scale = [], inks = [];
  for (let step = 0; step < 255; step++) {
    const place = (step / 254) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[low].map((part, at) => Math.round(part + (stops[low + 1][at] - part) * (place - low)));
    scale.push(`rgb(${mixed})`);
    inks.push(luminance(mixed) > 0.19 ? "#10151f" : "#ffffff");
  }
  const style = getComputedStyle(document.documentElement);
  theme = Object.fromEntries(["paper", "card", "ink", "soft", "line", "faint", "bad", "good", "spare", "limit", "used"]
    .map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function luminance(parts) {
  const [r, g, b] = parts.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

make();
/** The colour of a step of 0..254, and what can be read on it. */
export const fill = (step) => scale[step];
export const ink = (step) => inks[step];
export const step = (share) => Math.round(Math.min(Math.max(share, 0), 1) * 254);
/** The style sheet's colours by name. */
export const colour = (name) => theme[name];
export function onChange(act) {
  dark.addEventListener("change", () => { make(); act(); });
}

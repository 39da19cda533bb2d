// What is chosen. It is written behind the # of the address, so that a link restores it.

import { contents } from "./store.js";

export const VIEWS = ["overview", "heads", "map", "neuron", "image", "text"];

const NUMBERS = ["group", "layer", "head", "query", "key", "tiles"];
const TEXTS = ["view", "sort", "find", "theme", "filter", "shown", "side"];
const DEFAULTS = {
  view: "overview",
  group: 0,
  layer: 0,
  head: 0,
  query: null,
  key: null,
  tiles: 0, // the size of the tiles that are drawn over a map; 0 for none
  sort: "order",
  find: "",
  theme: "",
  filter: "all",
  shown: "all", // places of the heads whose lines are drawn, or all
  side: "keys", // whether a text is colored by what its token attends to, or by what attends to it
};

export const state = { ...DEFAULTS };
const listeners = [];
let waiting = null;

export function group() {
  return contents.groups[state.group];
}

export function layer() {
  return group().layers[state.layer];
}

export function head() {
  return layer().heads[state.head];
}

/** Call a function after each change, with the names of what has changed. */
export function listen(listener) {
  listeners.push(listener);
}

/** Change what is chosen, and draw it with the next frame. */
export function choose(changes) {
  const before = { ...state };
  Object.assign(state, changes);
  clamp();
  const changed = Object.keys(state).filter((name) => state[name] !== before[name]);
  if (changed.length === 0) return;
  write();
  if (waiting === null) {
    waiting = new Set();
    requestAnimationFrame(() => {
      const names = waiting;
      waiting = null;
      for (const listener of listeners) listener(names);
    });
  }
  for (const name of changed) waiting.add(name);
}

function limit(value, count) {
  return Number.isInteger(value) ? Math.min(Math.max(value, 0), count - 1) : 0;
}

function clamp() {
  state.group = limit(state.group, contents.groups.length);
  state.layer = limit(state.layer, group().layers.length);
  state.head = limit(state.head, layer().heads.length);
  const lengths = { query: group().queries.length, key: group().keys.length };
  for (const [name, length] of Object.entries(lengths)) {
    if (state[name] !== null && !(state[name] >= 0 && state[name] < length)) state[name] = null;
  }
  if (!VIEWS.includes(state.view)) state.view = DEFAULTS.view;
  if (!(state.tiles >= 0)) state.tiles = 0;
}

/** The text behind the #. */
export function address() {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== DEFAULTS[name] && value !== null) parts.set(name, value);
  }
  return `#${parts}`;
}

function write() {
  try {
    history.replaceState(null, "", address());
  } catch {
    // A frame without an address of its own, as in a notebook: the link still can be copied.
  }
}

/** The address of the page without what is chosen; empty in a frame, such as a notebook's, which has none of its own. */
export function whole() {
  try {
    return location.href.startsWith("about:") ? "" : location.href.split("#")[0];
  } catch {
    return "";
  }
}

function behind() {
  try {
    return location.hash;
  } catch {
    return "";
  }
}

function read(text) {
  const found = {};
  for (const [name, value] of new URLSearchParams(text.replace(/^#/, ""))) {
    if (NUMBERS.includes(name) && /^\d+$/.test(value)) found[name] = Number(value);
    if (TEXTS.includes(name)) found[name] = value;
  }
  return found;
}

/** What the address says, else what the page was made with. */
export function restore() {
  const largest = contents.groups.every((one) => one.layers.length * one.layers[0].heads.length === 1) ? "map" : "overview";
  Object.assign(state, DEFAULTS, { view: largest }, contents.start, read(behind()));
  clamp();
}

window.addEventListener("hashchange", () => {
  choose({ ...DEFAULTS, ...read(behind()) });
});

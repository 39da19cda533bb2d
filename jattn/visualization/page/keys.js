// The keyboard.

import { choose, group, layer, state, VIEWS } from "./state.js";

export const HELP = [
  ["1 … 6", "overview, heads, map, neuron, image, text"],
  ["← →", "the head before, the head after"],
  ["↑ ↓", "the layer before, the layer after"],
  ["k j", "the query before, the query after"],
  ["[ ]", "the group before, the group after"],
  ["/", "search heads"],
  ["p", "tiles over the map: none, 16, 32, 64"],
  ["t", "light or dark"],
  ["l", "copy a link to what is shown"],
  ["Esc", "let go of the chosen token"],
  ["?", "this list"],
];

const TILES = [0, 16, 32, 64];

function step(name, by, count) {
  choose({ [name]: (state[name] + by + count) % count });
}

/** Act on keys, but not while something is typed. */
export function mountKeys({ theme, link, help }) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches?.("input[type=search], select, textarea");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const slider = event.target.matches?.("input[type=range]");
    const query = (by) => choose({ query: Math.min(Math.max((state.query ?? -by) + by, 0), group().queries.length - 1) });
    const actions = {
      ArrowLeft: () => step("head", -1, layer().heads.length),
      ArrowRight: () => step("head", 1, layer().heads.length),
      ArrowUp: () => step("layer", -1, group().layers.length),
      ArrowDown: () => step("layer", 1, group().layers.length),
      j: () => query(1),
      k: () => query(-1),
      "[": () => choose({ group: state.group - 1, query: null, key: null }),
      "]": () => choose({ group: state.group + 1, query: null, key: null }),
      "/": () => document.getElementById("find").focus(),
      p: () => choose({ view: "map", tiles: TILES[(TILES.indexOf(state.tiles) + 1) % TILES.length] }),
      t: theme,
      l: link,
      "?": help,
      Escape: () => choose({ query: null, key: null }),
    };
    const view = VIEWS[Number(event.key) - 1];
    if (view) choose({ view });
    else if (actions[event.key] && !(slider && event.key.startsWith("Arrow"))) actions[event.key]();
    else return;
    event.preventDefault();
  });
}

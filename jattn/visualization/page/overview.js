// All heads as thumbnails, a row for each layer. They are unpacked when they come into sight.

import { element } from "./dom.js";
import { thumbnail } from "./pictures.js";
import { listed, measure, title } from "./rail.js";
import { hint } from "./readout.js";
import { choose, group, state } from "./state.js";
import { weightsOf } from "./store.js";

const SIDE = 64;

export function mountOverview(root) {
  const grid = element("div", { className: "overview" });
  root.append(grid);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { root, rootMargin: "100px" });

  async function draw(place) {
    const theme = document.documentElement.dataset.theme;
    if (place.dataset.theme === theme) return;
    place.dataset.theme = theme;
    const [i, j] = place.dataset.head.split(" ").map(Number);
    thumbnail(place.firstChild, await weightsOf(group(), group().layers[i].heads[j], true), SIDE);
    place.dataset.drawn = theme;
  }

  function card([i, j]) {
    const head = group().layers[i].heads[j];
    const plain = ["order", "label"].includes(state.sort);
    const value = plain ? null : measure(head, state.sort);
    return element(
      "button",
      { className: "card", "data-head": `${i} ${j}`, title: title(i, head), "aria-label": title(i, head) },
      element("canvas", { width: SIDE, height: SIDE }),
      element(
        "span",
        { className: "caption" },
        element("b", { textContent: state.sort === "order" && !state.find ? `${head.number}` : `L${i} H${head.number}` }),
        element("span", { className: "label", textContent: plain ? (head.label ?? "") : "" }),
        element("i", { textContent: value === null ? "" : value.toFixed(2) }),
      ),
    );
  }

  /** Cards as wide as the columns allow, and as high as the maps are. */
  function fit() {
    const columns = Math.max(...group().layers.map((layer) => layer.heads.length));
    const width = Math.floor((root.clientWidth - 64) / columns) - 8;
    grid.style.setProperty("--card", `${Math.min(Math.max(width, 58), 130)}px`);
    const ratio = group().keys.length / group().queries.length;
    grid.style.setProperty("--aspect", Math.min(Math.max(ratio, 0.4), 2.5));
  }

  function render() {
    fit();
    seen.disconnect();
    const heads = listed();
    grid.replaceChildren();
    if (state.sort === "order" && !state.find) {
      group().layers.forEach((layer, i) => {
        const cards = heads.filter(([one]) => one === i).map(card);
        grid.append(element("div", { className: "layer" }, element("span", { className: "name", textContent: `L${i}`, title: layer.name }), ...cards));
      });
    } else {
      grid.append(element("div", { className: "flow" }, ...heads.map(card)));
    }
    for (const one of grid.querySelectorAll(".card")) seen.observe(one);
    mark();
    hint(heads.length ? "A row for each layer, a column for each head. Queries run down, keys across. Click a head to open it." : "No head matches the search.");
  }

  function mark() {
    for (const one of grid.querySelectorAll(".card")) {
      one.classList.toggle("chosen", one.dataset.head === `${state.layer} ${state.head}`);
    }
  }

  grid.addEventListener("click", (event) => {
    const one = event.target.closest("[data-head]");
    if (!one) return;
    const [layer, head] = one.dataset.head.split(" ").map(Number);
    choose({ layer, head, view: "map" });
  });

  new ResizeObserver(fit).observe(root);

  return {
    render(changed) {
      const same = changed && [...changed].every((name) => ["layer", "head", "query", "key", "tiles", "filter", "shown"].includes(name));
      if (same) mark();
      else render();
    },
  };
}


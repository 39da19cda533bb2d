// Lines between two columns of tokens, a color for each head. A token under the pointer shows its own lines only.

import { headColor, headDash } from "./colors.js";
import { context, element, tokenElement } from "./dom.js";
import { hint, say } from "./readout.js";
import { choose, group, layer, state } from "./state.js";
import { weightsOf } from "./store.js";

const ROW = 20; // pixels
const GAP = 320;
const MOST = 5000; // lines at once
const FILTERS = { all: "all pairs", AA: "A → A", AB: "A → B", BA: "B → A", BB: "B → B" };

export function mountHeads(root) {
  const chips = element("div", { className: "chips" });
  const canvas = element("canvas");
  const columns = { queries: element("div", { className: "column queries" }), keys: element("div", { className: "column keys" }) };
  const inner = element("div", { className: "lines" }, columns.queries, element("div", { className: "between" }, canvas), columns.keys);
  const scroll = element("div", { className: "scroll" }, inner);
  const caption = element("div", { className: "caption-line" });
  root.append(chips, caption, scroll);
  let loaded = []; // the maps of the heads whose lines are drawn, with their places
  let hover = null; // { of: "queries" | "keys", place }
  let strongest = [];
  let version = 0;

  function places() {
    const all = layer().heads.map((_, place) => place);
    if (state.shown === "all") return all;
    const chosen = state.shown.split(",").map(Number);
    return all.filter((place) => chosen.includes(place));
  }

  function allowed(i, j) {
    const { sentences } = group();
    if (state.filter === "all" || sentences === null) return true;
    return "AB"[sentences.queries[i]] === state.filter[0] && "AB"[sentences.keys[j]] === state.filter[1];
  }

  /**
   * The strongest lines of all heads, about MOST: codes are counted from the largest down until that many are found.
   * Of the weakest that are drawn there may be many more; each head has an equal share of those.
   */
  function select() {
    const filtered = state.filter !== "all" && group().sentences !== null;
    const drawn = (wide, cell) => !filtered || allowed(Math.floor(cell / wide), cell % wide);
    const counts = new Uint32Array(256);
    for (const { weights } of loaded) {
      for (let cell = 0; cell < weights.codes.length; cell += 1) {
        if (drawn(weights.columns, cell)) counts[weights.codes[cell]] += 1;
      }
    }
    let least = 255;
    let sum = 0;
    while (least > 1 && sum + counts[least] <= MOST) sum += counts[least--];
    const share = Math.ceil(MOST / loaded.length);
    strongest = [];
    for (const { weights, place } of loaded) {
      const { codes, columns: wide } = weights;
      let weakest = 0;
      for (let cell = 0; cell < codes.length; cell += 1) {
        if (codes[cell] < least || !drawn(wide, cell)) continue;
        if (codes[cell] === least) weakest += 1;
        if (codes[cell] === least && weakest > share) continue;
        strongest.push([place, Math.floor(cell / wide), cell % wide, codes[cell] / weights.levels]);
      }
    }
  }

  function lines() {
    const focus = hover ?? (state.query === null ? null : { of: "queries", place: state.query });
    if (focus === null) return strongest;
    const found = [];
    const count = focus.of === "queries" ? group().keys.length : group().queries.length;
    for (const { weights, place } of loaded) {
      for (let other = 0; other < count; other += 1) {
        const [i, j] = focus.of === "queries" ? [focus.place, other] : [other, focus.place];
        const strength = weights.codes[i * weights.columns + j] / weights.levels;
        if (strength > 0.03 && allowed(i, j)) found.push([place, i, j, strength]);
      }
    }
    return found;
  }

  function draw() {
    const height = Math.min(scroll.clientHeight, inner.clientHeight) || 100;
    const top = scroll.scrollTop - inner.offsetTop + scroll.offsetTop;
    const drawn = context(canvas, GAP, height);
    drawn.clearRect(0, 0, GAP, height);
    const focus = hover !== null || state.query !== null;
    const buckets = new Map(); // lines of one head and about one weight are one path
    for (const line of lines()) {
      const [place, i, j, strength] = line;
      const [from, to] = [(i + 0.5) * ROW - top, (j + 0.5) * ROW - top];
      if (Math.max(from, to) < -ROW || Math.min(from, to) > height + ROW) continue;
      const key = place * 16 + Math.min(15, Math.floor(strength * 16));
      if (!buckets.has(key)) buckets.set(key, { place, strength, path: new Path2D() });
      const { path } = buckets.get(key);
      path.moveTo(1, from);
      path.bezierCurveTo(GAP * 0.35, from, GAP * 0.65, to, GAP - 1, to);
    }
    drawn.lineCap = "round";
    for (const { place, strength, path } of [...buckets.values()].sort((one, other) => one.strength - other.strength)) {
      drawn.strokeStyle = headColor(place);
      drawn.setLineDash(headDash(place));
      drawn.globalAlpha = focus ? 0.25 + 0.75 * strength : Math.max(0.02, strength ** 2);
      drawn.lineWidth = focus ? 0.8 + 3.2 * strength : 0.6 + 2 * strength;
      drawn.stroke(path);
    }
    shade();
  }

  /** Bars beside the tokens at the other end: the weight of each head. */
  function shade() {
    const focus = hover ?? (state.query === null ? null : { of: "queries", place: state.query });
    for (const [of, column] of Object.entries(columns)) {
      for (const one of column.children) {
        const mine = focus !== null && focus.of === of && Number(one.dataset.place) === focus.place;
        one.classList.toggle("focus", mine);
        if (one.style.backgroundImage) one.style.backgroundImage = "";
      }
    }
    if (focus === null) return;
    const others = columns[focus.of === "queries" ? "keys" : "queries"].children;
    const share = 100 / loaded.length;
    for (let place = 0; place < others.length; place += 1) {
      const [i, j] = focus.of === "queries" ? [focus.place, place] : [place, focus.place];
      const parts = loaded.map(({ weights, place: one }, at) => {
        const strength = allowed(i, j) ? Math.round(100 * Math.sqrt(weights.share(i, j))) : 0;
        return `color-mix(in srgb, ${headColor(one)} ${strength}%, transparent) ${share * at}% ${share * (at + 1)}%`;
      });
      if (loaded.some(({ weights }) => weights.codes[i * weights.columns + j] > 0.05 * weights.levels)) {
        others[place].style.backgroundImage = `linear-gradient(to right, ${parts.join(", ")})`;
      }
    }
  }

  function fill() {
    chips.replaceChildren();
    const on = places();
    layer().heads.forEach((head, place) => {
      const chip = element("button", {
        className: "chip",
        "aria-pressed": on.includes(place),
        title: `head ${head.number}${head.label ? `: ${head.label}` : ""}. Click: show or hide; double-click: only this one`,
        style: `--color:${headColor(place)};--dash:${headDash(place).length ? "dashed" : "solid"}`,
        textContent: head.label ? `${head.number} ${head.label}` : `${head.number}`,
      });
      chip.addEventListener("click", () => {
        const next = on.includes(place) ? on.filter((one) => one !== place) : [...on, place].sort((one, other) => one - other);
        choose({ shown: next.length === layer().heads.length ? "all" : next.join(",") || "none", head: place });
      });
      chip.addEventListener("dblclick", () => choose({ shown: String(place), head: place }));
      chips.append(chip);
    });
    const all = element("button", { className: "chip plain", textContent: "all", onclick: () => choose({ shown: "all" }) });
    const only = element("button", { className: "chip plain", textContent: "only this", title: "only the chosen head", onclick: () => choose({ shown: String(state.head) }) });
    chips.append(all, only);
    if (group().sentences !== null) {
      const filter = element(
        "select",
        { id: "filter", "aria-label": "pairs of sentences", onchange: () => choose({ filter: filter.value }) },
        ...Object.entries(FILTERS).map(([value, textContent]) => element("option", { value, textContent })),
      );
      filter.value = state.filter;
      chips.append(element("label", { className: "right" }, "sentences ", filter));
    }
    for (const of of ["queries", "keys"]) {
      columns[of].replaceChildren(
        ...group()[of].map((token, place) => {
          const made = tokenElement(token, { "data-place": place });
          if (group().sentences?.[of][place]) made.classList.add("second");
          return made;
        }),
      );
    }
    inner.style.setProperty("--row", `${ROW}px`);
  }

  async function load() {
    version += 1;
    const mine = version;
    const [shownGroup, shownLayer] = [group(), layer()];
    const found = await Promise.all(places().map(async (place) => ({ place, weights: await weightsOf(shownGroup, shownLayer.heads[place]) })));
    if (mine !== version) return;
    loaded = found;
    select();
    const total = loaded.reduce((sum, { weights }) => sum + weights.codes.length, 0);
    const named = shownLayer.name === String(state.layer) ? "" : ` (${shownLayer.name})`;
    caption.textContent = `Queries on the left, keys on the right, layer ${state.layer}${named}.${total > 2 * strongest.length && strongest.length >= MOST / 2 ? ` The ${strongest.length.toLocaleString("en")} strongest of ${total.toLocaleString("en")} weights; a token under the pointer shows all of its own.` : ""}`;
    draw();
    hint("Point at a token to see its lines; click to keep them.");
  }

  function over(event) {
    const one = event.target.closest?.("[data-place]");
    const next = one ? { of: one.parentElement === columns.queries ? "queries" : "keys", place: Number(one.dataset.place) } : null;
    if (next?.of === hover?.of && next?.place === hover?.place) return;
    hover = next;
    draw();
    if (hover === null || loaded.length === 0) return;
    const { weights, place } = loaded.find((found) => found.place === state.head) ?? loaded[0];
    const fixed = hover.of === "queries" ? bestOfRow(weights, hover.place) : bestOfColumn(weights, hover.place);
    say(weights, ...fixed, layer().heads[place]);
  }

  function bestOfRow(weights, i) {
    let best = 0;
    for (let j = 1; j < weights.columns; j += 1) if (weights.share(i, j) > weights.share(i, best)) best = j;
    return [i, best];
  }

  function bestOfColumn(weights, j) {
    let best = 0;
    for (let i = 1; i < weights.rows; i += 1) if (weights.share(i, j) > weights.share(best, j)) best = i;
    return [best, j];
  }

  inner.addEventListener("mouseover", over);
  inner.addEventListener("mouseleave", () => over({ target: inner }));
  columns.queries.addEventListener("click", (event) => {
    const one = event.target.closest("[data-place]");
    if (one) choose({ query: Number(one.dataset.place) === state.query ? null : Number(one.dataset.place) });
  });
  scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
  new ResizeObserver(() => loaded.length && draw()).observe(scroll);

  return {
    render(changed) {
      const light = changed && [...changed].every((name) => ["query", "key", "sort", "find", "tiles"].includes(name));
      if (light) {
        draw();
        return;
      }
      hover = null;
      fill();
      load();
    },
  };
}

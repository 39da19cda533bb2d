// Tokens as running text, colored by the weights of one of them.

import { colorOf, inkOn } from "./colors.js";
import { element, tokenElement } from "./dom.js";
import { title } from "./rail.js";
import { hint, say } from "./readout.js";
import { choose, group, head, state } from "./state.js";
import { weightsOf } from "./store.js";

const SIDES = { keys: "what it attends to", queries: "what attends to it" };

export function mountText(root) {
  const name = element("span", { className: "name" });
  const side = element(
    "select",
    { id: "side", "aria-label": "direction", onchange: () => choose({ side: side.value }) },
    ...Object.entries(SIDES).map(([value, textContent]) => element("option", { value, textContent })),
  );
  const texts = { queries: element("div", { className: "running" }), keys: element("div", { className: "running" }) };
  const names = { queries: element("h3", { textContent: "queries" }), keys: element("h3", { textContent: "keys" }) };
  root.append(
    element("div", { className: "chips" }, name, element("label", {}, "color ", side)),
    element("div", { className: "scroll texts" }, names.queries, texts.queries, names.keys, texts.keys),
  );
  let weights = null;
  let hover = null;
  let version = 0;

  function fill() {
    const { same } = group();
    texts.keys.hidden = names.keys.hidden = names.queries.hidden = same;
    for (const of of ["queries", "keys"]) {
      const made = [];
      group()[of].forEach((token, place) => {
        const glued = token.startsWith("##") || (place > 0 && /^[.,;:!?)\]'’]/.test(token));
        if (place > 0 && !glued) made.push(" ");
        made.push(tokenElement(token, { "data-place": place, "data-of": of }));
      });
      texts[of].replaceChildren(...made);
    }
  }

  function draw() {
    if (!weights) return;
    const given = group().same ? { ...hover, of: "queries" } : hover;
    const byKey = group().same ? state.side === "queries" : (given?.of ?? (state.side === "queries" ? "keys" : "queries")) === "keys";
    const chosen = hover?.place ?? (byKey && !group().same ? state.key : state.query) ?? 0;
    const colored = group().same ? texts.queries : texts[byKey ? "queries" : "keys"];
    for (const one of root.querySelectorAll(".running .token")) {
      one.style.background = "";
      one.style.color = "";
      one.classList.remove("focus");
    }
    const at = (place) => (byKey ? [place, chosen] : [chosen, place]);
    const tokens = [...colored.querySelectorAll(".token")];
    tokens.forEach((one, place) => {
      const share = weights.share(...at(place));
      if (share === 0 && weights.masked(...at(place))) one.classList.add("masked");
      else one.classList.remove("masked");
      one.style.background = colorOf(share);
      one.style.color = inkOn(share);
    });
    const own = group().same ? texts.queries : texts[byKey ? "keys" : "queries"];
    own.querySelectorAll(".token")[chosen]?.classList.add("focus");
    let best = 0;
    tokens.forEach((_, place) => (best = weights.share(...at(place)) > weights.share(...at(best)) ? place : best));
    say(weights, ...at(best));
  }

  root.addEventListener("mouseover", (event) => {
    const one = event.target.closest("[data-place]");
    if (!one) return;
    hover = { of: one.dataset.of, place: Number(one.dataset.place) };
    draw();
  });
  root.addEventListener("mouseleave", () => {
    hover = null;
    draw();
  });
  root.addEventListener("click", (event) => {
    const one = event.target.closest("[data-place]");
    if (!one) return;
    const place = Number(one.dataset.place);
    const which = one.dataset.of === "keys" ? "key" : "query";
    choose({ [which]: state[which] === place ? null : place });
  });

  async function load() {
    version += 1;
    const mine = version;
    name.textContent = title(state.layer, head());
    side.value = state.side;
    fill();
    const found = await weightsOf(group(), head());
    if (mine !== version) return;
    weights = found;
    hint("Point at a token; click to keep it.");
    draw();
  }

  return {
    render(changed) {
      if (changed && [...changed].every((one) => ["query", "key", "sort", "find", "tiles"].includes(one))) draw();
      else load();
    },
  };
}

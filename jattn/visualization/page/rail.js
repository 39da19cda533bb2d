// The list of heads: searched by label, sorted by a measure, a click opens one.

import { element } from "./dom.js";
import { contents } from "./store.js";
import { choose, group, state } from "./state.js";

const WORDS = {
  order: "layer and head",
  label: "label",
  score: "score of the label",
  entropy: "entropy",
  confidence: "confidence: the largest weight",
  distance: "distance in tokens",
  sink: "sink: weight on the first key",
};

/** The heads of the chosen group as [layer, head], those that are searched for, in their order. */
export function listed() {
  const found = [];
  const wanted = state.find.trim().toLowerCase();
  group().layers.forEach((layer, i) => {
    layer.heads.forEach((head, j) => {
      const text = `${layer.name} l${i}h${head.number} l${i} h${head.number} ${head.label ?? ""}`.toLowerCase();
      if (wanted.split(/\s+/).every((part) => text.includes(part))) found.push([i, j]);
    });
  });
  if (state.sort === "order") return found;
  const key = ([i, j]) => measure(group().layers[i].heads[j], state.sort);
  return found.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (typeof a === "string" || typeof b === "string") return String(a || "\uffff").localeCompare(String(b || "\uffff"));
    return (b ?? -Infinity) - (a ?? -Infinity);
  });
}

/** A head's label, its score, or one of its measures. */
export function measure(head, name) {
  if (name === "label") return head.label ?? "";
  if (name === "score") return head.score ?? null;
  return head.measures?.[contents.measures.indexOf(name)] ?? null;
}

/** What a head is called: the layer's place, its own number, what it does. */
export function title(layerPlace, head) {
  const label = head.label ? `: ${head.label}` : "";
  return `layer ${layerPlace}, head ${head.number}${label}`;
}

export function mountRail(root) {
  const labels = contents.groups.some((one) => one.layers.some((layer) => layer.heads.some((head) => head.label)));
  const search = element("input", {
    type: "search",
    id: "find",
    placeholder: labels ? "search: previous, L3, H5" : "search: L3, H5",
    "aria-label": "search heads",
    oninput: () => choose({ find: search.value }),
  });
  const options = ["order", ...(labels ? ["label", "score"] : []), ...contents.measures];
  const sort = element(
    "select",
    { id: "sort", "aria-label": "sort heads by", onchange: () => choose({ sort: sort.value }) },
    ...options.map((name) => element("option", { value: name, textContent: WORDS[name] ?? name })),
  );
  const list = element("div", { className: "list", role: "listbox", "aria-label": "heads" });
  const count = element("div", { className: "count" });
  root.append(element("div", { className: "tools" }, search, element("label", { className: "sort" }, "sort by ", sort)), list, count);

  function fill() {
    search.value = state.find;
    sort.value = state.sort;
    const heads = listed();
    const total = group().layers.reduce((sum, layer) => sum + layer.heads.length, 0);
    list.replaceChildren(
      ...heads.map(([i, j]) => {
        const head = group().layers[i].heads[j];
        const sorted = state.sort === "order" || state.sort === "label" ? measure(head, "score") : measure(head, state.sort);
        return element(
          "button",
          { className: "row", role: "option", "data-head": `${i} ${j}`, title: `${title(i, head)} (${group().layers[i].name})` },
          element("b", { textContent: `L${i} H${head.number}` }),
          element("span", { className: "label", textContent: head.label ?? "" }),
          element("i", { textContent: sorted === null ? "" : sorted.toFixed(2) }),
        );
      }),
    );
    count.textContent = heads.length === total ? `${total} ${total === 1 ? "head" : "heads"}` : `${heads.length} of ${total} heads`;
    list.scrollTop = 0;
    mark(state.sort === "order");
  }

  function mark(follow = true) {
    for (const row of list.children) {
      const chosen = row.dataset.head === `${state.layer} ${state.head}`;
      if (chosen === (row.getAttribute("aria-selected") === "true")) continue;
      row.setAttribute("aria-selected", chosen);
      if (chosen && follow) row.scrollIntoView({ block: "nearest" });
    }
  }

  list.addEventListener("click", (event) => {
    const row = event.target.closest("[data-head]");
    if (!row) return;
    const [layer, head] = row.dataset.head.split(" ").map(Number);
    choose({ layer, head, view: state.view === "overview" ? "map" : state.view });
  });
  return { fill, mark };
}

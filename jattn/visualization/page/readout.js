// The line below the views, which says what weight the pointer is at; and the legend.

import { colorOf, palette } from "./colors.js";
import { context, element, number, shown } from "./dom.js";
import { contents } from "./store.js";
import { group, head, state } from "./state.js";

const line = document.getElementById("readout");

/** Say a weight: of the chosen head unless another is given. */
export function say(weights, i, j, which = head()) {
  const value = weights.at(i, j);
  line.dataset.weight = value;
  line.dataset.query = i;
  line.dataset.key = j;
  const masked = weights.codes[i * weights.columns + j] === 0 && weights.masked(i, j);
  const error = which.weights === undefined ? "computed from int8" : `± ${weights.error(i, j).toPrecision(1)}`;
  line.replaceChildren(
    element("span", { className: "where", textContent: `L${state.layer} H${which.number}` }),
    named(group().queries[i], group().numbers[i], "query"),
    element("span", { className: "arrow", textContent: "attends to" }),
    named(group().keys[j], j, "key"),
    element("b", { textContent: masked ? "masked" : number(value) }),
    element("span", { className: "error", textContent: masked || Number.isNaN(value) ? "" : error }),
  );
}

function named(token, place, what) {
  const made = element("span", { className: "named", title: what }, element("bdi", { textContent: shown(token) }));
  made.append(element("sub", { textContent: place }));
  return made;
}

/** Say nothing but a hint. */
export function hint(text) {
  delete line.dataset.weight;
  line.replaceChildren(element("span", { className: "hint", textContent: text }));
}

/** The scale of colors, what a masked pair and NaN look like, and how weights are stored. */
export function mountLegend(root) {
  const scale = element("canvas", { "aria-hidden": "true" });
  const masked = element("span", { className: "key masked", textContent: contents.masked.length > 40 ? "masked" : `masked ${contents.masked}`.trim(), title: contents.masked });
  const wrong = element("span", { className: "key bad", textContent: "NaN" });
  const hasBad = contents.groups.some((one) => one.layers.some((layer) => layer.heads.some((each) => each.bad !== undefined)));
  wrong.hidden = !hasBad;
  masked.hidden = !contents.groups.some((one) => one.layers.some((layer) => layer.heads.some((each) => each.mask !== undefined)));
  const stored = contents.groups[0].layers[0].heads[0].weights !== undefined;
  const faint = (0.5 / contents.levels) ** 2;
  const how = stored
    ? `stored as the square root in ${contents.bits} bits: off by at most ${(1 / contents.levels).toPrecision(1)}, less for faint weights; 0 below ${faint.toExponential(0)}`
    : "too many to store: computed here, from queries and keys as int8";
  root.append(scale, masked, wrong, element("span", { className: "how", textContent: how }));

  return function draw() {
    const [width, height] = [190, 26];
    const drawn = context(scale, width, height);
    for (let x = 0; x < 160; x += 1) {
      drawn.fillStyle = colorOf((x / 159) ** 2);
      drawn.fillRect(15 + x, 0, 1.5, 10);
    }
    drawn.fillStyle = getComputedStyle(document.body).color;
    drawn.font = "10px system-ui, sans-serif";
    drawn.textAlign = "center";
    for (const weight of [0, 0.01, 0.1, 0.25, 0.5, 1]) {
      const x = 15 + 160 * Math.sqrt(weight);
      drawn.fillRect(Math.min(x, 174), 10, 1, 3);
      drawn.fillText(String(weight).replace(/^0\./, "."), x, 23);
    }
    const { bad } = palette();
    wrong.style.setProperty("--swatch", `rgb(${bad})`);
  };
}

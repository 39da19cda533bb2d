// How a weight comes about: a query, the keys, their products feature by feature, the scores, and the softmax.

import { colorOf, inkOn, signedColor } from "./colors.js";
import { context, css, element, number, short, shown } from "./dom.js";
import { title } from "./rail.js";
import { hint, say } from "./readout.js";
import { choose, group, head, layer, state } from "./state.js";
import { scoresOf, softmax, vectorsOf, weightsOf } from "./store.js";

const LINE = 20;
const NAME = 120;
const BAR = 90;

export function mountNeuron(root) {
  const bar = element("div", { className: "chips" });
  const top = element("canvas", { className: "query" });
  const canvas = element("canvas");
  const tall = element("div", { className: "tall" }, canvas);
  const scroll = element("div", { className: "scroll" }, tall);
  const nothing = element("div", { className: "nothing" });
  root.append(bar, nothing, top, scroll);
  let found = null;
  let weights = null;
  let version = 0;

  function row() {
    return state.query ?? 0;
  }

  function strips(features) {
    const width = Math.max(60, (root.clientWidth - NAME - 3 * BAR - 60) / 2);
    return Math.min(width, 6 * features);
  }

  /** Each feature as a colored cell. */
  function strip(drawn, values, start, features, largest, x, y, width) {
    const cell = width / features;
    for (let d = 0; d < features; d += 1) {
      drawn.fillStyle = signedColor(Math.sign(values[start + d]) * Math.sqrt(Math.abs(values[start + d]) / largest));
      drawn.fillRect(x + d * cell, y + 2, Math.max(cell - (cell > 3 ? 0.5 : 0), 0.5), LINE - 4);
    }
  }

  function draw() {
    if (!found || !weights) return;
    const { query, key, features } = found;
    const i = row();
    const keys = group().keys.length;
    const scores = scoresOf(found, i, keys);
    const masked = (j) => weights.masked(i, j);
    const shares = softmax(scores.map((score, j) => (masked(j) ? -Infinity : score)));
    const width = strips(features);
    const largest = (values) => values.reduce((most, one) => Math.max(most, Math.abs(one)), 1e-12);
    const [most, mostKey] = [largest(query), largest(key)];
    const products = new Float32Array(features);
    let mostProduct = 1e-12;
    for (let j = 0; j < keys; j += 1) {
      for (let d = 0; d < features; d += 1) mostProduct = Math.max(mostProduct, Math.abs(query[i * features + d] * key[j * features + d]));
    }
    const mostScore = largest(scores);
    const at = { key: NAME, product: NAME + width + 16, score: NAME + 2 * width + 32 };
    at.softmax = at.score + BAR + 8;
    at.stored = at.softmax + BAR + 8;
    const whole = at.stored + BAR;
    tall.style.height = `${keys * LINE}px`;

    const above = context(top, whole, LINE + 24);
    above.font = "12px system-ui, sans-serif";
    above.textBaseline = "middle";
    above.fillStyle = css("--ink");
    above.textAlign = "right";
    above.fillText(short(shown(group().queries[i]), 15), NAME - 8, LINE / 2);
    above.textAlign = "left";
    strip(above, query, i * features, features, most, at.key, 0, width);
    above.fillStyle = css("--soft");
    above.fillText("the query, q", at.product, LINE / 2);
    const heads = { key: "each key, k", product: "q × k", score: "sum: the score", softmax: "softmax", stored: "weight" };
    for (const [name, text] of Object.entries(heads)) above.fillText(text, at[name], LINE + 12);

    const height = Math.min(scroll.clientHeight, keys * LINE) || 100;
    const from = Math.floor(scroll.scrollTop / LINE);
    const to = Math.min(keys, Math.ceil((scroll.scrollTop + height) / LINE));
    const drawn = context(canvas, whole, height);
    drawn.font = "12px system-ui, sans-serif";
    drawn.textBaseline = "middle";
    for (let j = from; j < to; j += 1) {
      const y = j * LINE - scroll.scrollTop;
      drawn.fillStyle = css(masked(j) ? "--faint" : "--ink");
      drawn.textAlign = "right";
      drawn.fillText(short(shown(group().keys[j]), 15), NAME - 8, y + LINE / 2);
      drawn.textAlign = "left";
      strip(drawn, key, j * features, features, mostKey, at.key, y, width);
      for (let d = 0; d < features; d += 1) products[d] = query[i * features + d] * key[j * features + d];
      strip(drawn, products, 0, features, mostProduct, at.product, y, width);
      const half = BAR / 2;
      drawn.fillStyle = signedColor(scores[j] / mostScore);
      const long = (half * scores[j]) / mostScore;
      drawn.fillRect(at.score + half + Math.min(long, 0), y + 3, Math.abs(long), LINE - 6);
      drawn.fillStyle = css("--ink");
      drawn.fillText(scores[j].toFixed(2), at.score + (scores[j] < 0 ? half + 3 : 2), y + LINE / 2);
      if (masked(j)) {
        drawn.fillStyle = css("--faint");
        drawn.fillText("masked", at.softmax + 4, y + LINE / 2);
        continue;
      }
      for (const [name, value] of [["softmax", shares[j]], ["stored", weights.at(i, j)]]) {
        drawn.fillStyle = colorOf(value / weights.scale);
        drawn.fillRect(at[name], y + 2, BAR, LINE - 4);
        drawn.fillStyle = inkOn(value / weights.scale);
        drawn.fillText(number(value), at[name] + 6, y + LINE / 2);
      }
    }
  }

  function tokens() {
    const choice = element(
      "select",
      { id: "query", "aria-label": "query", onchange: () => choose({ query: Number(choice.value) }) },
      ...group().queries.map((token, i) => element("option", { value: i, textContent: `${group().numbers[i]} ${shown(token)}` })),
    );
    choice.value = row();
    const off = head().off;
    const more = layer().besides?.join(", ") ?? "something other than q · k, such as a bias, a scale or a soft cap";
    const told = off === undefined ? "" : off < 0.05
      ? `int8: the softmax is within ${off.toPrecision(1)} of the weights`
      : `the softmax is up to ${off.toPrecision(1)} off the weights, which also depend on ${more}`;
    bar.replaceChildren(
      element("span", { className: "name", textContent: title(state.layer, head()) }),
      element("label", {}, "query ", choice),
      element("span", { className: "counted", textContent: told }),
    );
  }

  async function load() {
    version += 1;
    const mine = version;
    tokens();
    const [vectors, map] = await Promise.all([vectorsOf(group(), head()), weightsOf(group(), head())]);
    if (mine !== version) return;
    [found, weights] = [vectors, map];
    nothing.hidden = found !== null;
    top.hidden = scroll.hidden = found === null;
    nothing.textContent = found ? "" : 'This view needs the queries and keys of a head: jattn.record(keep=("weights", "query", "key")), or view(..., query=..., key=...).';
    draw();
    hint("Choose a query above, or with the keys j and k. Features are colored by their sign: violet for positive, orange for negative.");
  }

  canvas.addEventListener("mousemove", (event) => {
    if (!weights) return;
    const j = Math.floor((event.clientY - canvas.getBoundingClientRect().top + scroll.scrollTop) / LINE);
    if (j >= 0 && j < weights.columns) say(weights, row(), j);
  });
  scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
  new ResizeObserver(draw).observe(scroll);

  return {
    render() {
      load();
    },
  };
}

// One head at full size. The pointer gives both tokens and the number; masked pairs are hatched; tiles are laid over.

import { context, css, element, short, shown } from "./dom.js";
import { hatch, image } from "./pictures.js";
import { title } from "./rail.js";
import { hint, say } from "./readout.js";
import { choose, group, head, state } from "./state.js";
import { tilesOf, weightsOf } from "./store.js";

const LARGEST = 4096; // pixels of a side
const SIZES = [8, 16, 32, 64, 128, 256];

export function mountMap(root) {
  const name = element("span", { className: "name" });
  const zoom = element("input", { type: "range", min: 0, max: 100, step: 1, value: 0, id: "zoom", "aria-label": "zoom" });
  const tileSize = element(
    "select",
    { id: "tiles", "aria-label": "tiles", onchange: () => choose({ tiles: Number(tileSize.value) }) },
    element("option", { value: 0, textContent: "no tiles" }),
    ...SIZES.map((size) => element("option", { value: size, textContent: `tiles of ${size}` })),
  );
  const counted = element("span", { className: "counted" });
  const bar = element("div", { className: "chips" }, name, element("label", {}, "zoom ", zoom), tileSize, counted);
  const base = element("canvas");
  const over = element("canvas", { className: "over" });
  const stack = element("div", { className: "stack" }, base, over);
  const scroll = element("div", { className: "scroll map" }, stack);
  root.append(bar, scroll);
  let weights = null;
  let cell = 8;
  let margin = { left: 0, top: 0, right: 0 };
  let tiles = null;
  let version = 0;
  let last = null;

  function fitted() {
    const [width, height] = [scroll.clientWidth - 16, scroll.clientHeight - 16];
    const longest = Math.max(weights.rows, weights.columns);
    const room = Math.min((width - 170) / weights.columns, (height - 90) / weights.rows);
    const least = Math.min(24, Math.max(room, 0.25));
    const most = Math.max(least, Math.min(32, LARGEST / longest));
    return least * (most / least) ** (Number(zoom.value) / 100);
  }

  function draw() {
    if (weights === null) return;
    cell = fitted();
    const labels = cell >= 9;
    margin = labels ? { left: 110, top: 84, right: 60 } : { left: 34, top: 24, right: 2 };
    const [width, height] = [weights.columns * cell, weights.rows * cell];
    const drawn = context(base, margin.left + width + margin.right, margin.top + height + 2);
    drawn.imageSmoothingEnabled = cell < 1;
    drawn.drawImage(image(weights), margin.left, margin.top, width, height);
    if (weights.mask !== null && cell >= 2) hatched(drawn, width, height);
    drawn.fillStyle = css("--soft");
    drawn.font = `${Math.min(12, Math.max(9, cell - 1))}px system-ui, sans-serif`;
    if (labels) {
      drawn.textBaseline = "middle";
      drawn.textAlign = "right";
      group().queries.forEach((token, i) => drawn.fillText(short(shown(token), 14), margin.left - 6, margin.top + (i + 0.5) * cell));
      drawn.textAlign = "left";
      group().keys.forEach((token, j) => {
        drawn.save();
        drawn.translate(margin.left + (j + 0.5) * cell, margin.top - 6);
        drawn.rotate(-Math.PI / 3.2);
        drawn.fillText(short(shown(token), 12), 0, 0);
        drawn.restore();
      });
    } else {
      drawn.font = "11px system-ui, sans-serif";
      drawn.fillText("keys →", margin.left, 14);
      drawn.save();
      drawn.translate(16, margin.top);
      drawn.rotate(-Math.PI / 2);
      drawn.textAlign = "right";
      drawn.fillText("← queries", 0, 0);
      drawn.restore();
    }
    drawn.strokeStyle = css("--line");
    drawn.strokeRect(margin.left - 0.5, margin.top - 0.5, width + 1, height + 1);
    if (tiles !== null) drawTiles(drawn);
    context(over, margin.left + width + margin.right, margin.top + height + 2);
    cross();
  }

  function hatched(drawn, width, height) {
    const small = document.createElement("canvas");
    small.width = weights.columns;
    small.height = weights.rows;
    const flat = new ImageData(weights.columns, weights.rows);
    for (let i = 0; i < weights.rows; i += 1) {
      for (let j = 0; j < weights.columns; j += 1) {
        const place = i * weights.columns + j;
        if (weights.codes[place] === 0 && weights.masked(i, j)) flat.data[4 * place + 3] = 255;
      }
    }
    small.getContext("2d").putImageData(flat, 0, 0);
    const large = document.createElement("canvas");
    const filled = context(large, width, height);
    filled.imageSmoothingEnabled = false;
    filled.drawImage(small, 0, 0, width, height);
    filled.globalCompositeOperation = "source-in";
    filled.fillStyle = hatch(filled, css("--hatch"));
    filled.fillRect(0, 0, width, height);
    drawn.drawImage(large, margin.left, margin.top, width, height);
  }

  function drawTiles(drawn) {
    const [high, wide] = tiles.tiles;
    const across = Math.ceil(weights.columns / wide);
    tiles.states.forEach((one, t) => {
      const [i, j] = [Math.floor(t / across) * high, (t % across) * wide];
      const [x, y] = [margin.left + j * cell, margin.top + i * cell];
      const [w, h] = [Math.min(wide, weights.columns - j) * cell, Math.min(high, weights.rows - i) * cell];
      if (one === 0) {
        drawn.fillStyle = css("--skipped");
        drawn.fillRect(x, y, w, h);
        return;
      }
      drawn.strokeStyle = one === 2 ? css("--full") : css("--partial");
      drawn.lineWidth = 2;
      drawn.strokeRect(x + 1.5, y + 1.5, Math.max(w - 3, 0.5), Math.max(h - 3, 0.5));
    });
  }

  function cross() {
    const drawn = over.getContext("2d");
    drawn.clearRect(0, 0, over.width, over.height);
    const at = last ?? (state.query === null ? null : [state.query, state.key]);
    if (at === null || weights === null) return;
    const [i, j] = at;
    drawn.strokeStyle = css("--accent");
    drawn.lineWidth = 1.5;
    drawn.strokeRect(margin.left - 1, margin.top + i * cell - 0.75, weights.columns * cell + 2, cell + 1.5);
    if (j === null) return;
    drawn.strokeRect(margin.left + j * cell - 0.75, margin.top - 1, cell + 1.5, weights.rows * cell + 2);
    if (cell >= 9) return;
    drawn.font = "12px system-ui, sans-serif";
    tag(drawn, short(shown(group().keys[j]), 18), margin.left + j * cell, margin.top - 4);
    tag(drawn, short(shown(group().queries[i]), 18), margin.left + 4, margin.top + i * cell - 4);
  }

  function tag(drawn, text, x, y) {
    const width = drawn.measureText(text).width + 8;
    const left = Math.min(x, margin.left + weights.columns * cell - width);
    const bottom = Math.max(y, 16);
    drawn.fillStyle = css("--accent");
    drawn.fillRect(left, bottom - 14, width, 18);
    drawn.fillStyle = css("--on-accent");
    drawn.fillText(text, left + 4, bottom);
  }

  function pointed(event) {
    const box = base.getBoundingClientRect();
    const i = Math.floor((event.clientY - box.top - margin.top) / cell);
    const j = Math.floor((event.clientX - box.left - margin.left) / cell);
    return weights && i >= 0 && j >= 0 && i < weights.rows && j < weights.columns ? [i, j] : null;
  }

  stack.addEventListener("mousemove", (event) => {
    const began = performance.now();
    const at = pointed(event);
    if (at === null || (last && at[0] === last[0] && at[1] === last[1])) return;
    last = at;
    cross();
    say(weights, ...at);
    document.documentElement.dataset.hover = (performance.now() - began).toFixed(2);
  });
  stack.addEventListener("mouseleave", () => {
    last = null;
    cross();
  });
  stack.addEventListener("click", (event) => {
    const at = pointed(event);
    if (at) choose(at[0] === state.query && at[1] === state.key ? { query: null, key: null } : { query: at[0], key: at[1] });
  });
  zoom.addEventListener("input", draw);
  new ResizeObserver(draw).observe(scroll);

  async function load() {
    version += 1;
    const mine = version;
    const [shownGroup, shownHead] = [group(), head()];
    const found = await weightsOf(shownGroup, shownHead);
    const laid = state.tiles ? await tilesOf(shownGroup, shownHead, state.tiles) : null;
    if (mine !== version) return;
    [weights, tiles, last] = [found, laid, null];
    name.textContent = title(state.layer, shownHead);
    tileSize.value = state.tiles;
    counted.replaceChildren();
    if (laid) {
      const of = (one) => laid.states.reduce((sum, each) => sum + (each === one), 0);
      counted.append(
        element("span", { className: "key full", textContent: `${of(2)} full` }),
        element("span", { className: "key partial", textContent: `${of(1)} masked in part` }),
        element("span", { className: "key skipped", textContent: `${of(0)} skipped` }),
        `${laid.given ? "planned by jattn" : "cut from the mask"}: tiles of ${laid.tiles[0]} × ${laid.tiles[1]}`,
      );
    }
    draw();
    if (state.query !== null && state.key !== null) say(weights, state.query, state.key);
    else hint("Point at a cell for its tokens and its weight; click to keep it.");
  }

  return {
    render(changed) {
      const light = changed && [...changed].every((one) => ["query", "key", "sort", "find", "filter", "shown"].includes(one));
      if (light && weights) {
        cross();
        if (state.query !== null && state.key !== null) say(weights, state.query, state.key);
      } else load();
    },
  };
}

// Weights over the patches of an image. The query is the patch under the pointer, or a token beside the image.

import { palette } from "./colors.js";
import { context, css, element, tokenElement } from "./dom.js";
import { title } from "./rail.js";
import { hint, say } from "./readout.js";
import { choose, group, head, state } from "./state.js";
import { contents, weightsOf } from "./store.js";

export function mountPatches(root) {
  const name = element("span", { className: "name" });
  const strength = element("input", { type: "range", min: 0, max: 100, value: 75, id: "strength", "aria-label": "strength of the colors" });
  const side = element("div", { className: "beside" });
  const canvas = element("canvas");
  const nothing = element("div", { className: "nothing" });
  const stage = element("div", { className: "stage" }, canvas, side);
  root.append(element("div", { className: "chips" }, name, element("label", {}, "colors ", strength)), nothing, element("div", { className: "scroll" }, stage));
  const image = new Image();
  let weights = null;
  let hover = null;
  let version = 0;
  let size = [1, 1];
  image.addEventListener("load", () => draw());
  if (contents.image) image.src = contents.image;

  /** The row whose weights are shown: the token or patch under the pointer, the chosen one, or the first. */
  function row() {
    return hover ?? state.query ?? 0;
  }

  function draw() {
    const grid = group().grids.keys;
    if (!weights || !grid || !image.complete) return;
    const room = Math.min(root.clientWidth - 260, root.clientHeight - 80, 640);
    const ratio = (image.naturalWidth || 1) / (image.naturalHeight || 1);
    size = ratio > 1 ? [room, room / ratio] : [room * ratio, room];
    const drawn = context(canvas, ...size);
    drawn.filter = "grayscale(0.8)";
    drawn.imageSmoothingEnabled = image.naturalWidth > size[0];
    drawn.drawImage(image, 0, 0, ...size);
    drawn.filter = "none";
    const [w, h] = [size[0] / grid.columns, size[1] / grid.rows];
    const i = row();
    let most = 1e-9;
    for (let patch = 0; patch < grid.rows * grid.columns; patch += 1) most = Math.max(most, weights.share(i, grid.first + patch));
    const { weights: table } = palette();
    for (let patch = 0; patch < grid.rows * grid.columns; patch += 1) {
      const j = grid.first + patch;
      const share = Math.sqrt(weights.share(i, j) / most);
      const at = 3 * Math.round(255 * share);
      drawn.globalAlpha = weights.masked(i, j) ? 0.9 : Number(strength.value) / 100;
      drawn.fillStyle = weights.masked(i, j) ? css("--masked") : `rgb(${table[at]},${table[at + 1]},${table[at + 2]})`;
      drawn.fillRect((patch % grid.columns) * w, Math.floor(patch / grid.columns) * h, w, h);
    }
    drawn.globalAlpha = 0.25;
    drawn.strokeStyle = css("--ink");
    drawn.lineWidth = 0.5;
    for (let x = 0; x <= grid.columns; x += 1) drawn.strokeRect(x * w, 0, 0, size[1]);
    for (let y = 0; y <= grid.rows; y += 1) drawn.strokeRect(0, y * h, size[0], 0);
    drawn.globalAlpha = 1;
    const own = group().grids.queries;
    if (own && i >= own.first && i < own.first + own.rows * own.columns) {
      drawn.strokeStyle = css("--accent");
      drawn.lineWidth = 3;
      drawn.strokeRect(((i - own.first) % own.columns) * w, Math.floor((i - own.first) / own.columns) * h, w, h);
    }
    for (const one of side.children) one.classList.toggle("focus", Number(one.dataset.place) === i);
  }

  function pointed(event) {
    const box = canvas.getBoundingClientRect();
    const grid = group().grids.keys;
    const x = Math.floor(((event.clientX - box.left) / box.width) * grid.columns);
    const y = Math.floor(((event.clientY - box.top) / box.height) * grid.rows);
    return x >= 0 && y >= 0 && x < grid.columns && y < grid.rows ? y * grid.columns + x : null;
  }

  canvas.addEventListener("mousemove", (event) => {
    const patch = pointed(event);
    if (patch === null || !weights) return;
    const own = group().grids.queries;
    if (own && state.query === null) hover = own.first + patch;
    draw();
    say(weights, row(), group().grids.keys.first + patch);
  });
  canvas.addEventListener("mouseleave", () => {
    hover = null;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const own = group().grids.queries;
    const patch = pointed(event);
    if (own && patch !== null) choose({ query: state.query === own.first + patch ? null : own.first + patch });
  });
  side.addEventListener("mouseover", (event) => {
    const one = event.target.closest("[data-place]");
    if (!one || !weights) return;
    hover = Number(one.dataset.place);
    draw();
  });
  side.addEventListener("mouseleave", () => {
    hover = null;
    draw();
  });
  side.addEventListener("click", (event) => {
    const one = event.target.closest("[data-place]");
    if (one) choose({ query: Number(one.dataset.place) === state.query ? null : Number(one.dataset.place) });
  });
  strength.addEventListener("input", draw);
  new ResizeObserver(draw).observe(root);

  async function load() {
    version += 1;
    const mine = version;
    name.textContent = title(state.layer, head());
    const grid = group().grids.keys;
    nothing.hidden = grid !== null;
    stage.hidden = grid === null;
    nothing.textContent = grid
      ? ""
      : contents.image
        ? "The keys of this group are no patches of the image. Choose another group above."
        : "This view needs an image that tokens are patches of: view(..., image=..., grid=(rows, columns)).";
    if (!grid) return;
    const own = group().grids.queries;
    const isPatch = (i) => own && i >= own.first && i < own.first + own.rows * own.columns;
    side.replaceChildren(...group().queries.flatMap((token, i) => (isPatch(i) ? [] : [tokenElement(token, { "data-place": i })])));
    const found = await weightsOf(group(), head());
    if (mine !== version) return;
    weights = found;
    draw();
    hint(own ? "Point at a patch, or at a token beside the image: it is the query. Click to keep it." : "Point at a token beside the image: it is the query. Click to keep it.");
  }

  return {
    render(changed) {
      if (changed && [...changed].every((one) => ["query", "key", "sort", "find"].includes(one))) draw();
      else load();
    },
  };
}

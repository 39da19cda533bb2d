// Maps as pixels.

import { palette } from "./colors.js";

/** The pixels of a map, one for each weight, its mask and its NaN in colors of their own. */
export function pixels(weights) {
  const { rows, columns, codes, levels } = weights;
  const { weights: table, masked, bad } = palette();
  const found = new ImageData(columns, rows);
  const { data } = found;
  for (let i = 0; i < rows; i += 1) {
    for (let j = 0; j < columns; j += 1) {
      const cell = i * columns + j;
      const at = 3 * Math.round((255 * codes[cell]) / levels);
      let color = null;
      if (weights.isBad(i, j)) color = bad;
      else if (codes[cell] === 0 && weights.masked(i, j)) color = masked;
      data[4 * cell] = color ? color[0] : table[at];
      data[4 * cell + 1] = color ? color[1] : table[at + 1];
      data[4 * cell + 2] = color ? color[2] : table[at + 2];
      data[4 * cell + 3] = 255;
    }
  }
  return found;
}

/** A canvas with the pixels of a map. */
export function image(weights) {
  const made = document.createElement("canvas");
  made.width = weights.columns;
  made.height = weights.rows;
  made.getContext("2d").putImageData(pixels(weights), 0, 0);
  return made;
}

/** Draw a map in a small square: each pixel the largest weight of its cell, so that thin lines survive. */
export function thumbnail(canvas, weights, side) {
  const { rows, columns, codes, levels, step } = weights;
  const [high, wide] = [Math.min(side, Math.ceil(rows / step)), Math.min(side, columns)];
  const { weights: table, masked, bad } = palette();
  const most = new Uint8Array(high * wide);
  const open = new Uint8Array(high * wide);
  const wrong = new Uint8Array(high * wide);
  const across = Uint16Array.from({ length: columns }, (_, j) => Math.floor((j * wide) / columns));
  const { mask } = weights;
  for (let i = 0; i < rows; i += step) {
    const start = Math.floor((i * high) / rows) * wide;
    for (let j = 0; j < columns; j += 1) {
      const cell = start + across[j];
      const code = codes[i * columns + j];
      if (code > most[cell]) most[cell] = code;
      if (mask === null || code > 0 || !weights.masked(i, j)) open[cell] = 1;
      if (weights.bad !== null && weights.isBad(i, j)) wrong[cell] = 1;
    }
  }
  canvas.width = wide;
  canvas.height = high;
  const found = new ImageData(wide, high);
  for (let cell = 0; cell < most.length; cell += 1) {
    const at = 3 * Math.round((255 * most[cell]) / levels);
    const color = wrong[cell] ? bad : open[cell] ? null : masked;
    for (let c = 0; c < 3; c += 1) found.data[4 * cell + c] = color ? color[c] : table[at + c];
    found.data[4 * cell + 3] = 255;
  }
  canvas.getContext("2d").putImageData(found, 0, 0);
}

/** A pattern of slanted lines, for what is masked. */
export function hatch(context, color) {
  const tile = document.createElement("canvas");
  tile.width = 8;
  tile.height = 8;
  const drawn = tile.getContext("2d");
  drawn.strokeStyle = color;
  drawn.lineWidth = 1;
  for (const offset of [-8, 0, 8]) {
    drawn.beginPath();
    drawn.moveTo(offset, 8);
    drawn.lineTo(offset + 8, 0);
    drawn.stroke();
  }
  return context.createPattern(tile, "repeat");
}

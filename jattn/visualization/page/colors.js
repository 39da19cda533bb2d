// Colors that people with any color vision tell apart: scales whose lightness only rises or falls, and the hues of
// Okabe and Ito for heads.

const LIGHT = ["#f7fbff", "#d6e6f4", "#abcfe6", "#6aaed6", "#3787c0", "#105ba4", "#08306b"];
const DARK = ["#0d1526", "#1d3263", "#3f4a6b", "#62666f", "#8d8878", "#bfb16c", "#fee838"];
const SIGNED_LIGHT = ["#b35806", "#f1a340", "#fee0b6", "#f7f7f7", "#d8daeb", "#998ec3", "#542788"];
const SIGNED_DARK = ["#ffb45c", "#d07a1f", "#6b4a26", "#1d222e", "#453f70", "#7d6fc4", "#b9adff"];

/** The color of each head, by its place; the ninth has that of the first, and dashed lines. */
const HEADS = ["#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#b7a800", "#8c8c8c"];
const DASHES = [[], [5, 3], [1.5, 2.5]];

function rgb(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

/** 256 colors between stops, as bytes r, g, b. */
function table(stops) {
  const found = new Uint8Array(768);
  const colors = stops.map(rgb);
  for (let i = 0; i < 256; i += 1) {
    const place = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    for (let c = 0; c < 3; c += 1) {
      found[3 * i + c] = Math.round(colors[low][c] + (place - low) * (colors[low + 1][c] - colors[low][c]));
    }
  }
  return found;
}

const TABLES = {
  light: { weights: table(LIGHT), signed: table(SIGNED_LIGHT), masked: [214, 216, 222], bad: [213, 94, 0] },
  dark: { weights: table(DARK), signed: table(SIGNED_DARK), masked: [45, 49, 58], bad: [255, 120, 40] },
};

/** The tables of the theme that is shown. */
export function palette() {
  return TABLES[document.documentElement.dataset.theme];
}

/** The color of a weight, given as a share of the scale, by its square root, as CSS. */
export function colorOf(share) {
  const { weights } = palette();
  const i = 3 * Math.round(255 * Math.sqrt(Math.min(Math.max(share, 0), 1)));
  return `rgb(${weights[i]},${weights[i + 1]},${weights[i + 2]})`;
}

/** Black or white, whichever is read better on the color of a weight. */
export function inkOn(share) {
  const { weights } = palette();
  const i = 3 * Math.round(255 * Math.sqrt(Math.min(Math.max(share, 0), 1)));
  return 0.3 * weights[i] + 0.59 * weights[i + 1] + 0.11 * weights[i + 2] > 140 ? "#10131a" : "#ffffff";
}

/** The color of a number from -1 to 1, as CSS. */
export function signedColor(share) {
  const { signed } = palette();
  const i = 3 * Math.round(127.5 + 127.5 * Math.min(Math.max(share, -1), 1));
  return `rgb(${signed[i]},${signed[i + 1]},${signed[i + 2]})`;
}

export function headColor(place) {
  return HEADS[place % HEADS.length];
}

export function headDash(place) {
  return DASHES[Math.floor(place / HEADS.length) % DASHES.length];
}

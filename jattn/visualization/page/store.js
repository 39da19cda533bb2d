// What the page shows. The document has two inert scripts: `contents`, JSON; and `blobs`, packed arrays that it names
// by their index: base64 of zlib, unpacked when they are first looked at.
//
//   contents: title, notes, levels, bits, measures, image, start, masked (in words), groups
//   group:    name, side, queries, keys (tokens), numbers (of the queries), same, sentences, grids, layers
//   layer:    name, heads, besides (what the weights are made of besides softmax(q · k))
//   head:     number, label, score, measures; blobs: weights (codes), bad and mask (bits), query and key (vectors);
//             scale, features, off (of the softmax from int8), plan {tiles, states}

export const contents = JSON.parse(document.getElementById("contents").textContent);
const blobs = JSON.parse(document.getElementById("blobs").textContent);

const KEPT = 96 * 2 ** 20; // bytes of unpacked maps
const kept = new Map(); // of a key, a promise; the least recently used first
let bytes = 0;

async function unpack(number) {
  const text = atob(blobs[number]);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** What `make` promises, kept under a key until too much is. */
function remembered(key, size, make) {
  if (kept.has(key)) {
    const found = kept.get(key);
    kept.delete(key);
    kept.set(key, found);
    return found.promise;
  }
  const promise = make();
  kept.set(key, { promise, size });
  bytes += size;
  for (const [old, { size: freed }] of kept) {
    if (bytes <= KEPT || old === key) break;
    kept.delete(old);
    bytes -= freed;
  }
  return promise;
}

function bytesOf(number, size) {
  return remembered(`blob ${number}`, size, () => unpack(number));
}

function bit(bits, place) {
  return (bits[place >> 3] >> (7 - (place & 7))) & 1;
}

/** Vectors as floats: a scale for each, then int8. */
async function vectors(number, length, features) {
  return remembered(`vectors ${number}`, 4 * length * features, async () => {
    const stored = await unpack(number);
    const scales = new Float32Array(stored.buffer.slice(0, 4 * length));
    const values = new Int8Array(stored.buffer, 4 * length);
    const found = new Float32Array(length * features);
    for (let i = 0; i < found.length; i += 1) found[i] = (values[i] / 127) * scales[Math.floor(i / features)];
    return found;
  });
}

/** The queries and keys of a head, or null. */
export async function vectorsOf(group, head) {
  if (head.query === undefined) return null;
  const [query, key] = await Promise.all([
    vectors(head.query, group.queries.length, head.features),
    vectors(head.key, group.keys.length, head.features),
  ]);
  return { query, key, features: head.features };
}

/** The scores of a query with all keys, or (into `found`) with those that it may attend to: -Infinity with others. */
export function scoresOf({ query, key, features }, row, keys, allowed = () => true, found = new Float32Array(keys)) {
  const start = row * features;
  for (let j = 0; j < keys; j += 1) {
    found[j] = -Infinity;
    if (!allowed(j)) continue;
    let sum = 0;
    for (let d = 0, at = j * features; d < features; d += 1) sum += query[start + d] * key[at + d];
    found[j] = sum;
  }
  return found;
}

/** Scores become shares, in place: their softmax; zeros if all are -Infinity. */
export function softmax(scores) {
  const top = scores.reduce((most, one) => Math.max(most, one), -Infinity);
  let total = 0;
  for (let j = 0; j < scores.length; j += 1) {
    scores[j] = top === -Infinity ? 0 : Math.exp(scores[j] - top);
    total += scores[j];
  }
  if (total === 0) return scores;
  for (let j = 0; j < scores.length; j += 1) scores[j] /= total;
  return scores;
}

/** The map of a head: codes, masked pairs and NaN. */
export class Weights {
  constructor(rows, columns, codes, levels, scale, mask, bad, step = 1) {
    Object.assign(this, { rows, columns, codes, levels, scale, mask, bad, step });
  }

  masked(i, j) {
    return this.mask !== null && bit(this.mask, i * this.columns + j) === 0;
  }

  isBad(i, j) {
    return this.bad !== null && bit(this.bad, i * this.columns + j) === 1;
  }

  /** The weight as a share of the scale. */
  share(i, j) {
    return (this.codes[i * this.columns + j] / this.levels) ** 2;
  }

  at(i, j) {
    return this.isBad(i, j) ? NaN : this.share(i, j) * this.scale;
  }

  /** The largest error of `at`: half a step of the code, at this weight. */
  error(i, j) {
    const code = this.codes[i * this.columns + j];
    return (this.scale * (code + 0.25)) / this.levels ** 2;
  }
}

/** The codes of softmax(q · k) for every so many rows. Masked pairs cost nothing: half of a causal map. */
async function computed(group, head, mask, every) {
  const { length: rows } = group.queries;
  const { length: columns } = group.keys;
  const found = await vectorsOf(group, head);
  const codes = new Uint8Array(rows * columns);
  const scores = new Float32Array(columns);
  for (let i = 0; i < rows; i += every) {
    const place = i * columns;
    const shares = softmax(scoresOf(found, i, columns, (j) => mask === null || bit(mask, place + j) === 1, scores));
    for (let j = 0; j < columns; j += 1) codes[place + j] = Math.round(255 * Math.sqrt(shares[j]));
  }
  return codes;
}

/** The map of a head. With `coarse`, one that is computed has only some of its rows: every `step`-th. */
export function weightsOf(group, head, coarse = false) {
  const { length: rows } = group.queries;
  const { length: columns } = group.keys;
  const size = rows * columns;
  const stored = head.weights !== undefined;
  const step = coarse && !stored ? Math.max(1, Math.floor(rows / 64)) : 1;
  return remembered(`map ${stored ? head.weights : `${head.query} ${head.key}`} ${step}`, size, async () => {
    const [mask, bad] = await Promise.all(
      [head.mask, head.bad].map((one) => (one === undefined ? null : bytesOf(one, size / 8))),
    );
    const codes = stored ? await unpack(head.weights) : await computed(group, head, mask, step);
    return new Weights(rows, columns, codes, stored ? contents.levels : 255, head.scale ?? 1, mask, bad, step);
  });
}

/** The state of each tile of a head's plan: 0 skipped, 1 in part, 2 full; of the mask's own tiles without a plan. */
export async function tilesOf(group, head, size) {
  const { length: rows } = group.queries;
  const { length: columns } = group.keys;
  if (head.plan) {
    return { tiles: head.plan.tiles, states: await bytesOf(head.plan.states, 0), given: true };
  }
  const [high, wide] = [Math.ceil(rows / size), Math.ceil(columns / size)];
  const some = new Uint32Array(high * wide);
  const mask = head.mask === undefined ? null : await bytesOf(head.mask, (rows * columns) / 8);
  for (let i = 0; i < rows; i += 1) {
    for (let j = 0; j < columns; j += 1) {
      if (mask === null || bit(mask, i * columns + j)) some[Math.floor(i / size) * wide + Math.floor(j / size)] += 1;
    }
  }
  const states = new Uint8Array(some.length);
  for (let t = 0; t < some.length; t += 1) {
    const [i, j] = [Math.floor(t / wide) * size, (t % wide) * size];
    const cells = Math.min(size, rows - i) * Math.min(size, columns - j);
    states[t] = some[t] === 0 ? 0 : some[t] === cells ? 2 : 1;
  }
  return { tiles: [size, size], states, given: false };
}

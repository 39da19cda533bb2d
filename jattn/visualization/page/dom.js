// Elements and tokens. Text is only ever set as text, never as markup.

/** An element with properties, attributes (`data-`, `aria-`, `role`, `style`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "style" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** A token as people read it: marks of a space as ␣, line ends as ↵, control characters as their pictures. */
export function shown(token) {
  if (token === "") return "∅";
  const spaced = token.replace(/^(?:[Ġ▁ ])/u, "␣").replace(/<\/w>$/, "").replace(/[ĊĉĠ▁]/gu, (sign) => ({ Ċ: "↵", ĉ: "⇥" })[sign] ?? "␣");
  return spaced.replace(/[\p{Cc}\u2028\u2029]/gu, (sign) => {
    if (sign === "\n" || sign === "\u2028" || sign === "\u2029") return "↵";
    if (sign >= "\u0080") return "·";
    return sign === "\u007f" ? "␡" : String.fromCharCode(0x2400 + sign.charCodeAt(0));
  });
}

/** At most so many characters, as people count them. */
export function short(text, most) {
  if (text.length <= most) return text;
  const parts = typeof Intl.Segmenter === "function" ? [...new Intl.Segmenter().segment(text)].map((one) => one.segment) : [...text];
  return parts.length <= most ? text : `${parts.slice(0, most - 1).join("")}…`;
}

/** A token in an element of its own, whose direction does not touch its neighbors. */
export function tokenElement(token, properties = {}) {
  const made = element("span", { className: "token", dir: "auto", title: token, ...properties });
  made.textContent = shown(token);
  return made;
}

/** The context of a canvas of this many CSS pixels, sharp on any screen. */
export function context(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const made = canvas.getContext("2d");
  made.setTransform(ratio, 0, 0, ratio, 0, 0);
  return made;
}

/** A color of the style sheet. */
export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A number with as many digits as the page can vouch for. */
export function number(value) {
  if (Number.isNaN(value)) return "NaN";
  if (value === 0) return "0";
  if (value < 0.0005) return value.toExponential(1);
  return value < 0.1 ? value.toFixed(4) : value.toFixed(3);
}

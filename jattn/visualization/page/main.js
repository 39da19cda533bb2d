// Puts the page together, and draws what changes.

import { element } from "./dom.js";
import { mountHeads } from "./heads.js";
import { HELP, mountKeys } from "./keys.js";
import { mountMap } from "./map.js";
import { mountNeuron } from "./neuron.js";
import { mountOverview } from "./overview.js";
import { mountPatches } from "./patches.js";
import { mountRail } from "./rail.js";
import { mountLegend } from "./readout.js";
import { address, choose, group, listen, restore, state, VIEWS, whole } from "./state.js";
import { contents } from "./store.js";
import { mountText } from "./text.js";

const MOUNTS = { overview: mountOverview, heads: mountHeads, map: mountMap, neuron: mountNeuron, image: mountPatches, text: mountText };
const page = document.documentElement;
const byId = (name) => document.getElementById(name);
const views = {};

function dark() {
  return state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function theme() {
  page.dataset.theme = dark() ? "dark" : "light";
}

/** Copy a link; where a page may not, as in frames and on some disks, show it. */
async function link() {
  const text = whole() + address();
  try {
    if (whole() === "") throw new Error("a frame has no address that a link could lead to");
    await navigator.clipboard.writeText(text);
    byId("link").textContent = "copied";
    setTimeout(() => (byId("link").textContent = "link"), 1200);
  } catch {
    const box = byId("address");
    byId("whose").textContent = whole() ? "" : "Append it to the address of the file that .save(path) writes.";
    box.querySelector("input").value = text;
    if (!box.open) box.showModal();
    box.querySelector("input").select();
  }
}

function help() {
  const box = byId("help");
  if (box.open) box.close();
  else box.showModal();
}

restore();
theme();
byId("title").textContent = contents.title;
for (const [number, name] of VIEWS.entries()) {
  byId("tabs").append(element("button", { role: "tab", "data-view": name, title: `key ${number + 1}`, textContent: name, onclick: () => choose({ view: name }) }));
}
const groups = byId("groups");
groups.hidden = contents.groups.length === 1;
groups.append(...contents.groups.map((one, number) => element("option", { value: number, textContent: one.name })));
groups.addEventListener("change", () => choose({ group: Number(groups.value), query: null, key: null }));
byId("theme").addEventListener("click", () => choose({ theme: dark() ? "light" : "dark" }));
byId("link").addEventListener("click", link);
byId("asks").addEventListener("click", help);
byId("keys").append(...HELP.flatMap(([key, what]) => [element("dt", { textContent: key }), element("dd", { textContent: what })]));
for (const box of document.querySelectorAll("dialog")) box.addEventListener("click", (event) => event.target === box && box.close());
const notes = byId("notes");
notes.hidden = contents.notes.length === 0;
notes.append(...contents.notes.slice(0, 4).map((note) => element("div", { textContent: note })));
if (contents.notes.length > 4) notes.append(element("div", { textContent: `… and ${contents.notes.length - 4} more`, title: contents.notes.join("\n") }));
const rail = mountRail(byId("rail"));
const legend = mountLegend(byId("legend"));
mountKeys({ theme: () => choose({ theme: dark() ? "light" : "dark" }), link, help });

function show(changed) {
  theme();
  groups.value = state.group;
  byId("theme").textContent = dark() ? "light" : "dark";
  for (const tab of byId("tabs").children) tab.setAttribute("aria-selected", tab.dataset.view === state.view);
  if (!changed || ["find", "sort", "group"].some((name) => changed.has(name))) rail.fill();
  else rail.mark();
  if (!changed || changed.has("theme")) legend();
  for (const name of VIEWS) {
    const place = byId(`view-${name}`);
    place.hidden = name !== state.view;
    if (name === state.view && !views[name]) {
      views[name] = MOUNTS[name](place);
      views[name].render(null);
    } else if (name === state.view) {
      views[name].render(changed === null || changed.has("view") || changed.has("theme") ? null : changed);
    }
  }
  document.title = `${contents.title}: ${group().name}`;
}

listen(show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(null));
show(null);
requestAnimationFrame(() => setTimeout(() => (page.dataset.ready = Math.round(performance.now()))));

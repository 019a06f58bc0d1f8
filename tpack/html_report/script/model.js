// The data of the page, and what is chosen or pointed at in all its parts together.

const data = JSON.parse(document.getElementById("data").textContent);
const tensors = d3.range(data.names.length);
const ternary = tensors.filter((i) => data.size[i] > 0);
const percent = d3.format(".1%");
const plain = d3.format(",");
const units = ["B", "kB", "MB", "GB"];

/** Bytes for people, as the terminal has them. */
function size(count) {
  let unit = 0;
  while (count >= 1000 && unit < 3) {
    count /= 1000;
    unit += 1;
  }
  return `${count.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

/** Digits for a magnitude: 0.0123, 4.56, 1.2e-7. */
function short(value) {
  return value === 0 ? "0" : d3.format(value < 1e-4 || value >= 1e5 ? ".2~e" : ".3~g")(value);
}

/** The mean of a property over the tensors that have it, by their weights; null if none has. */
function mean(ids, values) {
  const known = ids.filter((i) => values[i] !== null);
  if (!known.length) return null;
  const total = d3.sum(known, (i) => data.size[i]);
  return d3.sum(known, (i) => values[i] * data.size[i]) / total;
}

/** The greatest of a property over the tensors that have it; null if none has. */
function most(ids, values) {
  return d3.max(ids, (i) => values[i]) ?? null;
}

/** Where a tensor stands: layer 12, mlp.up_proj. */
function place(role, depth) {
  return depth === null ? data.roles[role] : `${data.roles[role]}, layer ${depth}`;
}

// The cells of the maps: tensors of one role and layer; experts share a cell.
const depths = [...new Set(ternary.map((i) => data.depth[i]))].sort((a, b) =>
  a === null ? 1 : b === null ? -1 : a - b,
);
const roles = [...new Set(ternary.map((i) => data.role[i]))];
const cells = [...d3.group(ternary, (i) => `${data.role[i]} ${data.depth[i]}`).values()].map(
  (ids) => ({
    ids,
    role: data.role[ids[0]],
    depth: data.depth[ids[0]],
    name: ids.length > 1 ? `${place(data.role[ids[0]], data.depth[ids[0]])} ×${ids.length}`
      : data.names[ids[0]],
  }),
);

// Tensors of a row and a column of the maps that have no cell there.
const there = new Set(cells.map((cell) => `${cell.role} ${cell.depth}`));
const blanks = tensors.filter((i) => roles.includes(data.role[i]) && depths.includes(data.depth[i])
  && !there.has(`${data.role[i]} ${data.depth[i]}`));

// ---- what is chosen

let chosen = new Set();
const watchers = [];
const pointers = [];

/** Choose tensors; those that are chosen already are let go. */
function choose(ids, title, { add = false } = {}) {
  const same = ids.length === chosen.size && ids.every((i) => chosen.has(i));
  chosen = new Set(same ? [] : add ? [...chosen, ...ids] : ids);
  const words = chosen.size === ids.length ? title : `${chosen.size} tensors`;
  for (const watch of watchers) watch(words);
  say(chosen.size ? `Chosen: ${words}` : "Nothing chosen");
}

/** Point at tensors in every chart. */
function point(ids) {
  const set = new Set(ids);
  for (const show of pointers) show(set);
}

function say(words) {
  document.getElementById("said").textContent = words;
}

// ---- the tip beside the pointer

const tip = document.getElementById("tip");

function showTip(event, title, rows) {
  tip.replaceChildren();
  d3.select(tip).append("b").text(title);
  for (const [label, value] of rows) {
    const row = d3.select(tip).append("div");
    row.append("span").text(label);
    row.append("span").text(value);
  }
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18;
  const top = below + box.height > innerHeight ? event.clientY - box.height - 12 : below;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** An empty chart of the width of its place. */
function canvas(id, height) {
  const holder = document.getElementById(id);
  const width = Math.max(260, holder.clientWidth);
  holder.replaceChildren();
  const svg = d3.select(holder).append("svg");
  svg.attr("width", width).attr("height", height).attr("viewBox", `0 0 ${width} ${height}`);
  return { svg, width, holder };
}

function empty(id, words) {
  const holder = document.getElementById(id);
  holder.replaceChildren();
  d3.select(holder).append("p").attr("class", "empty").text(words);
}

const pen = document.createElement("canvas").getContext("2d");
const family = getComputedStyle(document.body).fontFamily;

/** How wide a text is, in pixels. */
function measure(text, pixels = 11.5) {
  pen.font = `${pixels}px ${family}`;
  return pen.measureText(text).width;
}

/** Text cut at its start, since the end of a name tells more. */
function fit(text, width, pixels = 11.5) {
  if (measure(text, pixels) <= width) return text;
  let [from, last] = [1, text.length - 1];
  while (from < last) {
    const middle = (from + last) >> 1;
    if (measure(`…${text.slice(middle)}`, pixels) > width) from = middle + 1;
    else last = middle;
  }
  return `…${text.slice(from)}`;
}

/** Write a name that ends at ``right``, on one line or on two around the middle of its row. */
function label(node, text, width, middle, right) {
  const lines = [text];
  if (measure(text) > width) {
    const tail = fit(text, width, 10).replace(/^…[^._]*[._](?=.)/, "");
    const rest = tail.startsWith("…") ? tail.slice(1) : tail;
    lines.splice(0, 1, fit(text.slice(0, text.length - rest.length), width, 10), rest);
  }
  const two = lines.length > 1;
  d3.select(node).attr("y", middle).classed("two", two).selectAll("tspan").data(lines).join("tspan")
    .attr("x", right).attr("dy", (_, i) => (two ? (i ? "1.1em" : "-0.2em") : "0.35em"))
    .text((line) => line);
  if (two) d3.select(node).append("title").text(text);
}

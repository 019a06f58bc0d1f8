// Heat maps: layers from left to right, projections from top to bottom.

const ROW = 26;
const ENDS = 92; // room for the least and the greatest of a row

const errorText = (v) => (v === null ? "unknown" : v === 0 ? "0" : v < 0.001 ? short(v) : v.toFixed(3));
const shareText = (v) => (v === null ? "unknown" : v < 0.001 ? `${d3.format(".2~r")(v * 100)}%` : percent(v));

/** What can be mapped: the values of the tensors, their unit, and the ends of the colours. */
const MAPS = {
  zeros: {
    title: "Share of zeros", values: data.zeros, format: percent, hue: "blue",
    // nearly equal shares have nearly one colour: its ends are at least 20 points apart
    ends: ([low, high]) => {
      const spare = Math.max(0, 0.2 - (high - low)) / 2;
      const start = Math.max(0, Math.min(0.8, Math.floor((low - spare) * 20 + 1e-6) / 20));
      return [start, Math.min(1, Math.max(start + 0.2, Math.ceil((high + spare) * 20 - 1e-6) / 20))];
    },
    unit: "of the trits; the colours span 20 points or more", blank: "blank: not packed",
  },
  error: {
    title: "Relative error", values: data.error, format: errorText, hue: "orange",
    ends: ([, high]) => [0, Math.max(0.1, Math.ceil(high * 10 - 1e-6) / 10)],
    unit: "of the norm of the weight; 0 is no colour", blank: "blank: not packed",
  },
  changed: {
    title: "Changed trits", values: data.changed, format: shareText, hue: "orange", log: true,
    ends: () => [1e-5, 1],
    unit: "of the trits, on a logarithmic scale; none is no colour",
  },
  drift: {
    title: "Largest change of a scale", values: data.drift, format: shareText, hue: "blue", log: true,
    ends: () => [1e-5, 1], fold: most,
    unit: "of the scale before, on a logarithmic scale; none is no colour",
  },
};

function heat(id) {
  const { title, values, format, hue, ends, unit, blank, log, fold = mean } = MAPS[id];
  const value = new Map(cells.map((cell) => [cell, fold(cell.ids, values)]));
  const domain = ends(d3.extent(value.values()));
  const tint = (log ? d3.scaleLog : d3.scaleLinear)(domain, [0.1, 1]).clamp(true);
  const height = roles.length * ROW + 22;
  const { svg, width, holder } = canvas(id, height);
  legend(holder, domain.map(d3.format(format === errorText ? ".3~r" : ".3~p")), hue,
    blank && blanks.length ? [unit, blank] : [unit]);
  const longest = d3.max(roles, (role) => measure(data.roles[role])) + 14;
  const margin = Math.min(longest, width * 0.36);
  const numbers = (width - margin) / depths.length > 46; // a cell has room for its own
  const right = width - (numbers ? 0 : ENDS);
  const step = Math.min(90, Math.max(2, (right - margin) / depths.length));
  const wide = margin + step * depths.length;
  const whole = Math.max(width, wide + (numbers ? 0 : ENDS));
  svg.attr("width", whole).attr("viewBox", `0 0 ${whole} ${height}`); // its place scrolls
  const x = d3.scaleBand(depths.map(String), [margin, wide]).paddingInner(step > 12 ? 0.1 : step > 6 ? 0.06 : 0);
  const y = d3.scaleBand(roles, [0, roles.length * ROW]).paddingInner(0.1);

  svg.attr("class", `heat ${hue}`).attr("tabindex", 0).attr("role", "application");
  svg.attr("aria-label", `${title} by layer and projection. Arrow keys move, Enter chooses.`);
  const marks = svg.append("g").selectAll("rect").data(cells).join("rect");
  marks
    .attr("x", (c) => x(String(c.depth)))
    .attr("y", (c) => y(c.role))
    .attr("width", x.bandwidth())
    .attr("height", y.bandwidth())
    .attr("rx", Math.min(3, x.bandwidth() / 4))
    .classed("unknown", (c) => value.get(c) === null)
    // no error is no small error, but none
    .style("--tint", (c) => (value.get(c) ? tint(value.get(c)) : 0));
  const writing = svg.append("g").attr("class", "values");
  if (numbers) {
    writing.selectAll("text").data(cells).join("text")
      .attr("x", (c) => x(String(c.depth)) + x.bandwidth() / 2)
      .attr("y", (c) => y(c.role) + y.bandwidth() / 2)
      .attr("dy", "0.35em")
      .text((c) => format(value.get(c)));
  } else {
    const rows = d3.group(cells, (c) => c.role);
    writing.attr("class", "ends").selectAll("text").data(roles).join("text")
      .attr("x", wide + ENDS)
      .attr("y", (role) => y(role) + y.bandwidth() / 2)
      .attr("dy", "0.35em")
      .text((role) => {
        const [low, high] = d3.extent(rows.get(role), (c) => value.get(c));
        if (low === undefined || low === null) return "";
        const [one, two] = [format(low), format(high)];
        return one === two ? one : `${one.replace("%", "")}–${two}`;
      });
  }

  const rowNames = svg.append("g").attr("class", "names").selectAll("text").data(roles).join("text");
  rowNames.each(function write(role) {
    label(this, data.roles[role], margin - 12, y(role) + y.bandwidth() / 2, margin - 10);
  });
  rowNames
    .on("click", (event, role) =>
      choose(ternary.filter((i) => data.role[i] === role), data.roles[role], { add: event.shiftKey }));

  const every = Math.ceil(26 / step);
  svg.append("g").attr("class", "ticks").selectAll("text")
    .data(depths.filter((depth, i) => i % every === 0 && !(depth === null && depths.length === 1)))
    .join("text")
    .attr("x", (depth) => x(String(depth)) + x.bandwidth() / 2)
    .attr("y", roles.length * ROW + 14)
    .text((depth) => (depth === null ? "–" : depth))
    .on("click", (event, depth) =>
      choose(ternary.filter((i) => data.depth[i] === depth), depth === null ? "outside layers"
        : `layer ${depth}`, { add: event.shiftKey }));

  // one cell is under the keyboard's cursor
  let cursor = cells[0];
  const at = (role, depth) => cells.find((c) => c.role === role && c.depth === depth);
  const move = (rows, columns) => {
    let row = roles.indexOf(cursor.role);
    let column = depths.indexOf(cursor.depth);
    for (;;) {
      row += rows;
      column += columns;
      if (!(row in roles) || !(column in depths)) return;
      const next = at(roles[row], depths[column]);
      if (next) {
        cursor = next;
        point(cursor.ids);
        say(`${cursor.name}: ${title.toLowerCase()} ${format(value.get(cursor))}`);
        return;
      }
    }
  };
  svg.on("keydown", (event) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key in way) move(...way[event.key]);
    else if (event.key === "Enter" || event.key === " ") choose(cursor.ids, cursor.name);
    else if (event.key === "Escape") choose([], "");
    else return;
    event.preventDefault();
  });
  svg.on("focus", () => svg.node().matches(":focus-visible") && point(cursor.ids));
  svg.on("blur", () => point([]));
  marks
    .on("pointermove", (event, cell) => {
      point(cell.ids);
      cellTip(event, cell);
    })
    .on("pointerleave", () => {
      point([]);
      hideTip();
    })
    .on("click", (event, cell) => {
      cursor = cell;
      choose(cell.ids, cell.name, { add: event.shiftKey });
    });

  const mark = () => {
    marks.classed("chosen", (c) => c.ids.some((i) => chosen.has(i)));
    svg.classed("some", cells.some((c) => c.ids.some((i) => chosen.has(i))));
  };
  mark();
  return {
    holder,
    mark,
    show: (ids) => marks.classed("over", (c) => ids.size > 0 && c.ids.some((i) => ids.has(i))),
  };
}

/** Say which colour is which number, and of what. */
function legend(holder, [low, high], hue, words) {
  const row = d3.select(holder).insert("p", "svg").attr("class", `legend ${hue}`);
  row.append("span").text(low);
  row.append("i");
  row.append("span").text(high);
  for (const each of words) row.append("span").text(each);
}

function cellTip(event, cell) {
  const known = Object.values(MAPS).filter(({ values }) => values);
  showTip(event, cell.name, [
    ...known.map(({ title, values, format, fold = mean }) => [
      title.toLowerCase(), format(fold(cell.ids, values)),
    ]),
    ["weights", plain(d3.sum(cell.ids, (i) => data.size[i]))],
    ...(data.bpw ? [["bits per weight", mean(cell.ids, data.bpw).toFixed(2)]] : []),
  ]);
}

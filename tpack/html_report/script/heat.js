// Heat maps: layers from left to right, projections from top to bottom.

const ROW = 24;

/** Draw one; from ``turn`` on a cell is so full of its hue that its text must be light. */
function heat(id, { title, value, domain, format, hue, turn }) {
  const top = 4;
  const foot = 46;
  const height = top + roles.length * ROW + foot;
  const { svg, width, holder } = canvas(id, height);
  const longest = d3.max(roles, (role) => data.roles[role].length) * 6.4 + 14;
  const margin = Math.min(longest, width * 0.36);
  const step = Math.min(90, Math.max(3, (width - margin) / depths.length));
  const wide = margin + step * depths.length;
  if (wide > width + 1) {
    svg.attr("width", wide).attr("viewBox", `0 0 ${wide} ${height}`); // its place scrolls
  }
  const x = d3.scaleBand(depths.map(String), [margin, wide]).paddingInner(step > 12 ? 0.1 : step > 6 ? 0.06 : 0);
  const y = d3.scaleBand(roles, [top, top + roles.length * ROW]).paddingInner(0.1);
  const share = d3.scaleLinear(domain, [0.14, 1]).clamp(true);
  // an error of 0 is no small error, but none; null is an error that nobody knows
  const paint = (v) =>
    v === null ? "transparent" : v === 0 ? "var(--cell)" : `color-mix(in oklab, var(${hue}) ${(share(v) * 100).toFixed(1)}%, var(--cell))`;

  svg.attr("class", "heat").attr("tabindex", 0).attr("role", "application");
  svg.attr("aria-label", `${title} by layer and projection. Arrow keys move, Enter chooses.`);

  const marks = svg.append("g").selectAll("rect").data(cells).join("rect");
  marks
    .attr("x", (c) => x(String(c.depth)))
    .attr("y", (c) => y(c.role))
    .attr("width", x.bandwidth())
    .attr("height", y.bandwidth())
    .attr("rx", Math.min(3, x.bandwidth() / 4))
    .style("fill", (c) => paint(value(c)));
  if (x.bandwidth() > 40) {
    svg.append("g").attr("class", "values").selectAll("text").data(cells).join("text")
      .attr("x", (c) => x(String(c.depth)) + x.bandwidth() / 2)
      .attr("y", (c) => y(c.role) + y.bandwidth() / 2)
      .attr("dy", "0.35em")
      .classed("light", (c) => value(c) > 0 && share(value(c)) > turn)
      .text((c) => format(value(c)));
  }

  const rowNames = svg.append("g").attr("class", "names").selectAll("text").data(roles).join("text");
  rowNames
    .attr("x", margin - 10)
    .attr("y", (role) => y(role) + y.bandwidth() / 2)
    .attr("dy", "0.35em")
    .text((role) => fit(data.roles[role], margin - 12))
    .on("click", (event, role) =>
      choose(ternary.filter((i) => data.role[i] === role), data.roles[role], { add: event.shiftKey }));
  rowNames.append("title").text((role) => data.roles[role]);

  const every = Math.ceil(26 / step);
  svg.append("g").attr("class", "ticks").selectAll("text")
    .data(depths.filter((depth, i) => i % every === 0 && !(depth === null && depths.length === 1)))
    .join("text")
    .attr("x", (depth) => x(String(depth)) + x.bandwidth() / 2)
    .attr("y", top + roles.length * ROW + 12)
    .text((depth) => (depth === null ? "–" : depth))
    .on("click", (event, depth) =>
      choose(ternary.filter((i) => data.depth[i] === depth), depth === null ? "outside layers"
        : `layer ${depth}`, { add: event.shiftKey }));
  legend(svg, { left: margin, top: height - 16, domain, format, paint, share });

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
        say(`${cursor.name}: ${title.toLowerCase()} ${format(value(cursor))}`);
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

function legend(svg, { left, top, domain, format, paint }) {
  const ramp = svg.append("g").attr("class", "legend").attr("transform", `translate(${left},${top})`);
  const width = 9;
  const steps = d3.range(14).map((i) => domain[0] + ((domain[1] - domain[0]) * i) / 13);
  const first = ramp.append("text").attr("y", 8).text(format(domain[0]));
  const start = format(domain[0]).length * 7.2 + 8;
  first.attr("x", 0);
  ramp.selectAll("rect").data(steps).join("rect")
    .attr("x", (_, i) => start + i * width)
    .attr("width", width + 0.5)
    .attr("height", 9)
    .style("fill", paint);
  ramp.append("text").attr("x", start + steps.length * width + 8).attr("y", 8).text(format(domain[1]));
}

/** Round ends around values, so that the colours differ where the values do. */
function around(values) {
  const [low, high] = d3.scaleLinear().domain(d3.extent(values)).nice(5).domain();
  return low < high ? [low, high] : [low * 0.95, high * 1.05 || 0.05];
}

function drawZeros() {
  const domain = around(cells.map((c) => c.zeros));
  const title = "Share of zeros";
  return heat("zeros", { title, value: (c) => c.zeros, domain, format: percent, hue: "--blue", turn: 0.68 });
}

/** What can be said where no error is above 0. */
function lossless() {
  const unknown = ternary.filter((i) => data.error[i] === null).length;
  if (!unknown) return "Nothing was lost: every weight equals its source exactly.";
  const whole = "saved from a module, for example after training. There is no source to compare with.";
  if (unknown === ternary.length) return `The weights were ${whole}`;
  return `${ternary.length - unknown} weights equal their source exactly. The other ${unknown} were ${whole}`;
}

function drawError() {
  const lossy = cells.map((c) => c.error).filter((error) => error > 0);
  if (!lossy.length) return empty("error", lossless());
  const domain = around(lossy);
  const title = "Relative error";
  const format = (v) => (v === null ? "unknown" : v === 0 ? "0" : v < 0.001 ? short(v) : v.toFixed(3));
  return heat("error", { title, value: (c) => c.error, domain, format, hue: "--orange", turn: 0.82 });
}

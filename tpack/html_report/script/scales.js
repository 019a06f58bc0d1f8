// Scales: a small chart for each projection of repeated layers, a row for each other tensor.

function drawScales() {
  const spreads = cells.map((cell) => {
    const known = cell.ids.map((i) => data.spread[i]).filter((s) => s && s[4] > 0);
    if (!known.length) return null;
    // the only scale of each weight; null where a weight has several
    const alone = known.every((s) => s[0] === s[4]) ? known.map((s) => s[0]) : null;
    return {
      cell,
      alone,
      spread: [d3.min(known, (s) => s[0]), d3.median(known, (s) => s[1]), d3.median(known, (s) => s[2]),
        d3.median(known, (s) => s[3]), d3.max(known, (s) => s[4])],
    };
  }).filter((item) => item !== null);
  if (!spreads.length) return empty("scales", "Every scale is zero.");
  const positive = spreads.flatMap((item) => item.spread.filter((v) => v > 0));
  const [least, most] = d3.extent(positive);
  // a logarithm needs a positive end, and a single value some room around it
  const domain = least * 1.5 < most ? [least / 1.1, most * 1.1] : [least / 1.6, most * 1.6];
  const byRole = d3.group(spreads, (item) => item.cell.role);
  const stacked = [...byRole.values()].filter((items) => items.length > 1);
  const single = [...byRole.values()].filter((items) => items.length === 1).map((items) => items[0]);
  const holder = document.getElementById("scales");
  holder.replaceChildren();
  const shows = [];
  if (stacked.length) {
    const grid = d3.select(holder).append("div").attr("class", "multiples").node();
    // laid out first, so that every chart knows its width
    const places = stacked.map(() => d3.select(grid).append("div").node());
    const width = places[0].clientWidth;
    stacked.forEach((items, n) => shows.push(panel(places[n], width, items, domain)));
  }
  if (single.length) {
    shows.push(ranges(d3.select(holder).append("div").attr("class", "ranges").node(), single, domain));
  }
  return { holder, mark: () => {}, show: (ids) => shows.forEach((show) => show(ids)) };
}

function scaleTip(event, { cell, spread }) {
  const rows = [["median", short(spread[2])]];
  if (spread[0] !== spread[4]) {
    rows.push(["middle half", `${short(spread[1])} – ${short(spread[3])}`]);
    rows.push(["range", `${short(spread[0])} – ${short(spread[4])}`]);
  }
  showTip(event, cell.name, rows);
}

function panel(place, width, items, domain) {
  const height = 98;
  const left = 58;
  const sorted = [...items].sort((a, b) => a.cell.depth - b.cell.depth);
  const x = d3.scaleLinear(d3.extent(sorted, (s) => s.cell.depth), [left + 4, width - 8]);
  const y = d3.scaleLog(domain, [height - 20, 8]).clamp(true);
  const role = data.roles[sorted[0].cell.role];
  d3.select(place).append("p").attr("class", "title").text(role);
  const svg = d3.select(place).append("svg").attr("width", width).attr("height", height);
  svg.attr("role", "img").attr("aria-label", `Scales of ${role} by layer`);
  yAxis(svg, y, domain, left, width - 8);
  if (sorted.every((s) => s.alone)) {
    const all = sorted.flatMap((s) => s.alone.map((scale) => [x(s.cell.depth), y(scale)]));
    svg.append("g").attr("class", "alone").selectAll("circle").data(all).join("circle")
      .attr("cx", (at) => at[0]).attr("cy", (at) => at[1]).attr("r", 2.25);
  } else {
    const polygon = (low, high) => [
      ...sorted.map((s) => `${x(s.cell.depth)},${y(s.spread[high])}`),
      ...[...sorted].reverse().map((s) => `${x(s.cell.depth)},${y(s.spread[low])}`),
    ].join(" ");
    svg.append("polygon").attr("class", "range").attr("points", polygon(0, 4));
    svg.append("polygon").attr("class", "half").attr("points", polygon(1, 3));
    svg.append("polyline").attr("class", "median")
      .attr("points", sorted.map((s) => `${x(s.cell.depth)},${y(s.spread[2])}`).join(" "));
  }
  const ends = svg.append("g").attr("class", "ticks").selectAll("text")
    .data([sorted[0], sorted[sorted.length - 1]]).join("text");
  ends.attr("x", (s) => x(s.cell.depth)).attr("y", height - 4).text((s) => s.cell.depth)
    .style("text-anchor", (_, i) => (i ? "end" : "start"));
  const dot = svg.append("circle").attr("class", "dot").attr("r", 4);
  const near = (event) => {
    const depth = x.invert(d3.pointer(event)[0]);
    return sorted[d3.leastIndex(sorted, (s) => Math.abs(s.cell.depth - depth))];
  };
  svg
    .on("pointermove", (event) => {
      point(near(event).cell.ids);
      scaleTip(event, near(event));
    })
    .on("pointerleave", () => {
      point([]);
      hideTip();
    })
    .on("click", (event) => choose(near(event).cell.ids, near(event).cell.name));
  return (ids) => {
    const found = sorted.find((s) => s.cell.ids.some((i) => ids.has(i)));
    dot.classed("on", Boolean(found));
    if (found) dot.attr("cx", x(found.cell.depth)).attr("cy", y(found.spread[2]));
  };
}

/** A few round numbers in a range: of 1, 2 and 5 times powers of ten. */
function rounds([low, high], most) {
  const all = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
    .flatMap((power) => ["1e", "2e", "5e"].map((digit) => Number(digit + power)))
    .filter((v) => v >= low && v <= high);
  return all.filter((_, i) => i % Math.ceil(all.length / most) === 0);
}

function yAxis(svg, y, domain, left, right) {
  const axis = svg.append("g").attr("class", "ticks grid").selectAll("g").data(rounds(domain, 3)).join("g");
  axis.attr("transform", (v) => `translate(0,${y(v)})`);
  axis.append("line").attr("x1", left).attr("x2", right);
  axis.append("text").attr("x", left - 8).attr("dy", "0.32em").style("text-anchor", "end").text(short);
}

function ranges(place, items, domain) {
  const row = 24;
  const width = Math.max(260, place.clientWidth);
  const longest = d3.max(items, (s) => measure(s.cell.name)) + 14;
  const left = Math.min(longest, width * 0.4);
  const height = items.length * row + 26;
  const x = d3.scaleLog(domain, [left + 4, width - 16]).clamp(true);
  const svg = d3.select(place).append("svg").attr("width", width).attr("height", height);
  svg.attr("role", "img").attr("aria-label", "Scales by tensor");
  const axis = d3.axisBottom(x).tickValues(rounds(domain, 6))
    .tickFormat(short).tickSize(-items.length * row).tickPadding(8);
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${items.length * row})`)
    .call(axis);
  const lines = svg.append("g").selectAll("g").data(items).join("g")
    .attr("class", "line").attr("transform", (_, i) => `translate(0,${i * row + row / 2})`);
  lines.append("rect").attr("class", "hit").attr("width", width).attr("height", row).attr("y", -row / 2);
  lines.append("text").attr("class", "name").each(function write(s) {
    label(this, s.cell.name, left - 12, 0, left - 10);
  });
  const bar = (from, to, kind, high) => lines.append("rect").attr("class", kind)
    .attr("x", (s) => x(s.spread[from])).attr("y", -high / 2).attr("height", high).attr("rx", 2)
    .attr("width", (s) => Math.max(0, x(s.spread[to]) - x(s.spread[from])));
  bar(0, 4, "range", 6);
  bar(1, 3, "half", 12);
  lines.append("circle").attr("class", "dot on").attr("r", 4).attr("cx", (s) => x(s.spread[2]));
  lines
    .on("pointermove", (event, s) => {
      point(s.cell.ids);
      scaleTip(event, s);
    })
    .on("pointerleave", () => {
      point([]);
      hideTip();
    })
    .on("click", (_, s) => choose(s.cell.ids, s.cell.name));
  return (ids) => lines.classed("over", (s) => s.cell.ids.some((i) => ids.has(i)));
}

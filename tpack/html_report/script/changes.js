// Where trits changed: for each tensor a map of its matrix, and what turned into what.

const LEVELS = ["none", "to 0.1%", "to 1%", "to 10%", "to 50%", "more"];
const SIGNS = ["−1", "0", "+1"];

function drawChanges() {
  const holder = document.getElementById("maps");
  holder.replaceChildren();
  const key = d3.select(holder).append("ul").attr("class", "key");
  key.selectAll("li").data(LEVELS).join("li").attr("class", (_, i) => `level${i}`).text((words) => words);
  const grid = d3.select(holder).append("div").attr("class", "cards").node();
  const mapped = tensors.filter((i) => data.blocks[i]);
  mapped.sort((a, b) => data.share[b] - data.share[a] || a - b);
  const mark = () => {
    const wanted = mapped.filter((i) => chosen.has(i));
    const shown = (wanted.length ? wanted : mapped).slice(0, 12);
    grid.replaceChildren(...shown.map(card));
  };
  mark();
  return { holder, mark, show: () => {} };
}

function card(i) {
  const [rows, columns, height, width, digits] = data.blocks[i];
  const across = Math.ceil(columns / width);
  const down = digits.length / across;
  const node = d3.create("figure");
  node.append("figcaption").text(data.names[i]);
  const svg = node.append("svg").attr("class", "blocks").attr("viewBox", `0 0 ${across} ${down}`)
    .attr("preserveAspectRatio", "none").attr("role", "img")
    .attr("aria-label", `Changed trits in blocks of ${height} × ${width}`);
  svg.style("height", `${Math.max(28, Math.min(240, (240 * rows) / columns))}px`);
  svg.append("rect").attr("class", "level0").attr("width", across).attr("height", down);
  d3.range(1, LEVELS.length).forEach((level) => {
    // runs of blocks of one colour are one line each
    const runs = d3.range(down).flatMap((y) =>
      [...digits.slice(y * across, (y + 1) * across).matchAll(new RegExp(`${level}+`, "g"))]
        .map((run) => `M${run.index} ${y + 0.5}h${run[0].length}`));
    if (runs.length) svg.append("path").attr("class", `level${level}`).attr("d", runs.join(""));
  });
  const sum = `${plain(data.count[i])} of ${plain(data.size[i])} trits, ${shareText(data.share[i])}`;
  node.append("p").text(`${sum}; a block is ${height} × ${width} of ${rows} × ${columns}`);
  const scales = data.rescaled[i];
  if (scales) node.append("p").text(`${plain(scales)} ${scales === 1 ? "scale" : "scales"} changed, ${data.times[i]}`);
  const table = node.append("table").attr("class", "turned");
  const head = table.append("thead").append("tr");
  head.append("td");
  head.selectAll("th").data(SIGNS).join("th").attr("scope", "col").text((sign) => `is ${sign}`);
  const body = table.append("tbody").selectAll("tr").data(data.turned[i]).join("tr");
  body.append("th").attr("scope", "row").text((_, was) => `was ${SIGNS[was]}`);
  body.each(function fill(counts, was) {
    d3.select(this).selectAll("td").data(counts).join("td")
      .attr("class", (_, is) => (was === is ? "same" : null)).text(plain);
  });
  return node.node();
}

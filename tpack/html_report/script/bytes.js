// Bytes: a treemap of packed trits, scales and kept tensors, by role.

const KINDS = [
  ["packed", "Packed trits", (i) => data.packed[i]],
  ["scales", "Scales", (i) => data.scales[i]],
  ["kept", "Kept", (i) => (data.size[i] ? 0 : data.bytes[i])],
];

function drawBytes() {
  const children = KINDS.map(([kind, title, bytes]) => ({
    kind,
    title,
    children: d3.groups(tensors.filter((i) => bytes(i) > 0), (i) => data.role[i]).map(([role, ids]) => ({
      kind, title, role, ids, value: d3.sum(ids, bytes),
    })),
  })).filter((group) => group.children.length);
  if (!children.length) return empty("bytes", "This checkpoint stores no bytes.");
  const height = 300;
  const { svg, width, holder } = canvas("bytes", height);
  const root = d3.hierarchy({ children }).sum((d) => d.value ?? 0)
    .sort((a, b) => b.value - a.value || (a.data.role ?? 0) - (b.data.role ?? 0));
  d3.treemap().size([width, height]).paddingInner(2).round(true)(root);
  svg.attr("class", "bytes").attr("role", "img");
  const share = (node) => percent(node.value / data.file);
  svg.attr("aria-label", root.children.map((n) => `${n.data.title} ${share(n)}`).join(", "));
  const leaf = svg.selectAll("g").data(root.leaves()).join("g")
    .attr("class", (n) => `leaf ${n.data.kind}`).attr("transform", (n) => `translate(${n.x0},${n.y0})`);
  leaf.append("rect").attr("rx", 3)
    .attr("width", (n) => n.x1 - n.x0).attr("height", (n) => n.y1 - n.y0);
  const roomy = leaf.filter((n) => n.x1 - n.x0 > 52 && n.y1 - n.y0 > 24);
  roomy.append("text").attr("x", 8).attr("y", 17)
    .text((n) => fit(data.roles[n.data.role], n.x1 - n.x0 - 14));
  roomy.filter((n) => n.y1 - n.y0 > 42).append("text").attr("class", "amount")
    .attr("x", 8).attr("y", 33).text((n) => size(n.value));
  leaf
    .on("pointermove", (event, n) => {
      point(n.data.ids);
      const title = data.roles[n.data.role];
      showTip(event, title, [
        [n.data.title.toLowerCase(), size(n.value)],
        ["of the file", share(n)],
        ["tensors", n.data.ids.length],
      ]);
    })
    .on("pointerleave", () => {
      point([]);
      hideTip();
    })
    .on("click", (event, n) => choose(n.data.ids, data.roles[n.data.role], { add: event.shiftKey }));
  const key = d3.select(holder).append("ul").attr("class", "key");
  key.selectAll("li").data(root.children).join("li").attr("class", (n) => n.data.kind)
    .text((n) => n.data.title);
  return {
    holder,
    mark: () => {},
    show: (ids) => leaf.classed("over", (n) => ids.size > 0 && n.data.ids.some((i) => ids.has(i))),
  };
}

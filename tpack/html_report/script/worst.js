// The ten tensors with the largest error, as bars that can be chosen.

function drawWorst() {
  const lossy = ternary.filter((i) => data.error[i] > 0);
  const ten = lossy.sort((a, b) => data.error[b] - data.error[a] || a - b).slice(0, 10);
  const holder = document.getElementById("worst");
  holder.replaceChildren();
  const most = data.error[ten[0]];
  const list = d3.select(holder).append("ol").attr("class", "worst");
  const rows = list.selectAll("li").data(ten).join("li").append("button").attr("type", "button");
  rows.append("span").attr("class", "name").text((i) => data.names[i]);
  rows.append("span").attr("class", "amount").text((i) => errorText(data.error[i]));
  rows.append("span").attr("class", "bar").style("--share", (i) => data.error[i] / most);
  rows
    .on("click", (event, i) => choose([i], data.names[i], { add: event.shiftKey }))
    .on("pointerenter focus", (_, i) => point([i]))
    .on("pointerleave blur", () => point([]));
  return {
    holder,
    mark: () => rows.attr("aria-pressed", (i) => chosen.has(i)),
    show: (ids) => rows.classed("over", (i) => ids.has(i)),
  };
}

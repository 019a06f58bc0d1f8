// Draw everything, and again when the page becomes wider or narrower.

const draws = [drawZeros, drawError, drawScales, drawBytes, drawWorst];
let charts = [];

function draw() {
  charts = draws.map((one) => one()).filter(Boolean);
  for (const chart of charts) chart.mark();
}

watchers.push(() => charts.forEach((chart) => chart.mark()));
pointers.push((ids) => charts.forEach((chart) => chart.show(ids)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen.size) choose([], "");
});

let width = document.body.clientWidth;
draw();
startTable();
new ResizeObserver(() => {
  if (document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  draw();
}).observe(document.body);
document.documentElement.dataset.ready = "";

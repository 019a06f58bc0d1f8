// Draw everything, and again when the page becomes wider or narrower.

const draws = Object.entries({
  ...Object.fromEntries(Object.keys(MAPS).map((id) => [id, () => heat(id)])),
  scales: drawScales,
  bytes: drawBytes,
  worst: drawWorst,
  maps: drawChanges,
}).filter(([id]) => document.getElementById(id)); // the page has no place for what would be empty
let charts = [];

function draw() {
  charts = draws.map(([, one]) => one()).filter(Boolean);
  for (const chart of charts) chart.mark();
}

watchers.push(() => charts.forEach((chart) => chart.mark()));
pointers.push((ids) => charts.forEach((chart) => chart.show(ids)));
const dock = document.getElementById("dock");
watchers.push((title) => {
  dock.hidden = !chosen.size;
  dock.querySelector("b").textContent = title;
});
dock.querySelector("button").addEventListener("click", () => choose([], ""));
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

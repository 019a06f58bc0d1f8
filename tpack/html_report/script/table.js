// The table: it is in the page already; here it learns to sort and to filter.

const body = document.querySelector("#tensors tbody");
const rows = [...body.rows];
const filter = document.getElementById("filter");
const chip = document.getElementById("chosen");
const tally = document.getElementById("count");

/** What a column sorts by: a list of the data, or what stands in it; null comes last both ways. */
function keys(name, column) {
  if (name === "order") return tensors;
  return data[name] ?? rows.map((row) => row.cells[column].textContent || null);
}

function sortTable(button) {
  const head = button.closest("th");
  const name = button.dataset.key;
  const now = head.getAttribute("aria-sort");
  const values = keys(name, head.cellIndex);
  const first = head.classList.contains("n") ? "descending" : "ascending"; // the largest are looked for
  const other = { ascending: "descending", descending: "ascending" };
  const way = now ? other[now] : first;
  for (const th of head.parentNode.cells) th.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way);
  const sign = way === "ascending" ? 1 : -1;
  const order = [...tensors].sort((a, b) => {
    if (values[a] === null || values[b] === null) {
      return (values[a] === null) - (values[b] === null) || a - b;
    }
    return sign * d3.ascending(values[a], values[b]) || a - b;
  });
  body.append(...order.map((i) => rows[i]));
  say(`Sorted by ${button.textContent}, ${way}`);
}

/** Whether a name fits words: all of them are in it; ``*`` stands for anything. */
function matcher(words) {
  const tests = words.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const parts = word.split("*");
    return (name) => {
      let from = 0;
      return parts.every((part) => {
        const found = name.indexOf(part, from);
        from = found + part.length;
        return found >= 0;
      });
    };
  });
  return (name) => tests.every((test) => test(name));
}

function filterTable() {
  const fits = matcher(filter.elements.words.value);
  const kind = filter.elements.kind.value;
  let shown = 0;
  for (const i of tensors) {
    const show = (!chosen.size || chosen.has(i)) && (!kind || data.kinds[i].split(" ").includes(kind)) && fits(data.names[i].toLowerCase());
    rows[i].hidden = !show;
    shown += show;
  }
  const noun = rows.length === 1 ? "tensor" : "tensors";
  tally.textContent = shown === rows.length ? `${shown} ${noun}` : `${shown} of ${rows.length} ${noun}`;
  body.classList.toggle("none", shown === 0);
}

function startTable() {
  for (const button of document.querySelectorAll("#tensors thead button")) {
    button.addEventListener("click", () => sortTable(button));
  }
  for (const i of tensors) {
    rows[i].addEventListener("pointerenter", () => point([i]));
    rows[i].addEventListener("pointerleave", () => point([]));
  }
  filter.addEventListener("input", filterTable);
  filter.addEventListener("change", filterTable); // not every browser has input for a select
  filter.addEventListener("submit", (event) => event.preventDefault());
  chip.addEventListener("click", () => choose([], ""));
  watchers.push((title) => {
    chip.hidden = !chosen.size;
    chip.textContent = `${title} ×`;
    chip.setAttribute("aria-label", `Show all tensors again, not only ${title}`);
    filterTable();
  });
  filterTable(); // a browser may have kept the words of an earlier visit
}

// Sorting, filtering and choice of columns of the table of runs. Without this script it is a table like any other.
"use strict";
(() => {
  const table = document.querySelector("table.sorted");
  const chooser = document.getElementById("chooser");
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const units = { B: 1, KiB: 1024, MiB: 1048576, GiB: 1073741824 };
  // A number, with its unit where it is one of bytes, or the text.
  const value = (cell) => {
    const text = cell.textContent.trim();
    const found = /^([-+]?[\d.,]+(?:e[-+]?\d+)?)(?: (B|KiB|MiB|GiB|%|s|ms|of \d+))?$/i.exec(text);
    return found ? parseFloat(found[1].replaceAll(",", "")) * (units[found[2]] || 1) : text;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known comes last, whichever way
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  };
  const sort = (place) => {
    const up = heads[place].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[place].setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = rows.map((row) => [value(row.cells[place]), row]);
    keyed.sort(([a], [b]) => (a === "" || b === "" || up ? compare(a, b) : compare(b, a)));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  };
  heads.forEach((head, place) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(place));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sort(place);
    });
  });
  const [search, count] = [chooser.querySelector("input"), chooser.querySelector("span")];
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const here = words.every((word) => text.includes(word));
      row.classList.toggle("gone", !here);
      shown += here;
    }
    count.textContent = `${shown} of ${rows.length} runs`;
  };
  search.addEventListener("input", filter);
  const places = chooser.querySelector("details > div");
  heads.forEach((head, place) => {
    const [label, box] = [document.createElement("label"), document.createElement("input")];
    [box.type, box.checked] = ["checkbox", true];
    box.addEventListener("change", () => {
      for (const row of [table.tHead.rows[0], ...rows]) row.cells[place].classList.toggle("gone", !box.checked);
    });
    label.append(box, ` ${head.textContent}`);
    places.append(label);
  });
  chooser.hidden = false;
  filter();
})();

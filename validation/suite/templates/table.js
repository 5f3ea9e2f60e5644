"use strict";
(function () {
  const table = document.getElementById("entries");
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const count = document.getElementById("count");
  const search = document.getElementById("search");

  function key(cell) {
    const value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim().toLowerCase() : value === "" ? null : Number(value);
  }

  // What is missing stays last, whichever way the column is sorted.
  function sort(column, ascending) {
    const rows = Array.from(body.rows).map(row => [key(row.cells[column]), row]);
    rows.sort((one, other) => {
      const [a, b] = [one[0], other[0]];
      if (a === null || b === null) return (a === null) - (b === null);
      return (a < b ? -1 : a > b ? 1 : 0) * (ascending ? 1 : -1);
    });
    body.append(...rows.map(row => row[1]));
    heads.forEach((head, number) => {
      if (number === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = shown + " of " + body.rows.length + " entries";
  }

  heads.forEach((head, number) => head.querySelector("button").addEventListener(
    "click", () => sort(number, head.getAttribute("aria-sort") !== "ascending")));
  search.addEventListener("input", filter);
  filter();
})();

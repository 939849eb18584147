// Tables that can be sorted by a column and narrowed by words. Without it they are read as they stand.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[index].dataset.v ?? row.cells[index].textContent;
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured stays last
        const order = a - b;
        return (Number.isNaN(order) ? a.localeCompare(b) : order) * (up ? 1 : -1);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "Narrow by words, for example wanet lpp";
  field.setAttribute("aria-label", "Narrow the table by words");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.parentElement.before(field);
}

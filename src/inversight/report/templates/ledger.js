"use strict";
for (const table of document.querySelectorAll("table.ledger")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headings = Array.from(table.tHead.rows[0].cells);
  const collator = new Intl.Collator("en", {numeric: true});

  const valueOf = (row, column, isNumber) => {
    const cell = row.cells[column];
    const text = cell.dataset.v ?? cell.textContent;
    if (text === "") return null;
    return isNumber ? Number(text) : text;
  };

  // Rows without a value stay last either way; equal rows keep the page's first order.
  const sortBy = (column, direction) => {
    const isNumber = headings[column].dataset.type === "number";
    const sign = direction === "descending" ? -1 : 1;
    const keyed = rows.map((row) => [valueOf(row, column, isNumber), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (isNumber ? a - b : collator.compare(a, b));
    });
    headings.forEach((heading, i) => {
      if (i === column) heading.setAttribute("aria-sort", direction);
      else heading.removeAttribute("aria-sort");
    });
    body.append(...keyed.map(([, row]) => row));
  };

  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const other = {ascending: "descending", descending: "ascending"};
      sortBy(column, other[heading.getAttribute("aria-sort")] ?? heading.dataset.first);
    });
  });

  const box = document.querySelector(`.filter[data-of="${table.id}"]`);
  const count = box.querySelector("output");
  const input = box.querySelector("input[type=search]");
  const texts = new Map(rows.map((row) => {
    const words = Array.from(row.cells).filter((_, i) => headings[i].dataset.filter !== undefined);
    return [row, words.map((cell) => cell.textContent).join("\n").toLowerCase()];
  }));
  const filter = () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const [row, text] of texts) {
      row.hidden = !text.includes(wanted);
      if (!row.hidden) shown += 1;
    }
    count.textContent = `${shown} of ${rows.length} shown`;
  };
  input.addEventListener("input", filter);
  box.hidden = false;
  filter();
}

// Print what is folded, and fold it again.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = Array.from(document.querySelectorAll("details:not([open])"));
  opened.forEach((one) => { one.open = true; });
});
window.addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));

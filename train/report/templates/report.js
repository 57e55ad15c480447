// Makes the columns of every table that can be sorted into buttons; only our own runs change places.
"use strict";
const units = { kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, "").replace("−", "-").replace("< ", ""));
  return { text, number: number * (units[text.slice(-2)] ?? 1) };
};
const compare = (a, b, way) => {
  if (isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) ? 1 : -1; // what has no number comes last
  if (!isNaN(a.number)) return way * (a.number - b.number);
  return way * a.text.localeCompare(b.text, "en", { numeric: true });
};
const sort = (table, column, head) => {
  const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  const body = table.querySelector("tbody.run");
  const rows = [...body.rows].map((row) => [row, value(row, column)]);
  rows.sort((a, b) => compare(a[1], b[1], way));
  body.append(...rows.map(([row]) => row));
};
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(table, column, head));
    head.replaceChildren(button);
  });
}

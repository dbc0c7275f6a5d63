/** A table that sorts by its headings, a page of rows at a time. */

import { button, el, turnOff } from "./dom.mjs";

const PAGE_ROWS = 25;

/**
 * What a text, a column with or without a minus before it, sorts by; where it names no column, what `otherwise` says.
 *
 * @param {{key: string}[]} columns
 * @param {string} text
 * @param {string} otherwise
 */
export function sortOf(columns, text, otherwise) {
  const key = text.replace(/^-/, "");
  if (columns.some((column) => column.key === key)) return { key, descending: text.startsWith("-") };
  return { key: otherwise.replace(/^-/, ""), descending: otherwise.startsWith("-") };
}

/**
 * Build a table.
 *
 * @param options columns: key, label, title (of a heading), ascending (whether it first sorts so), words (whether it
 *     holds words); name: of its place; pages: of its pager; empty: what stands there without rows; row(entry): a <tr>;
 *     sorted(text): a heading was pressed.
 * @returns scroller, pager (nodes), mark(sort), show(entries, page): page 0 where another was not asked for.
 */
export function createTable({ columns, name, pages, empty, row, sorted }) {
  let now = { key: "", descending: false };
  let entries = [];
  let page = 0;
  const press = (column) => {
    const descending = now.key === column.key ? !now.descending : !column.ascending;
    sorted(`${descending ? "-" : ""}${column.key}`);
  };
  const cells = columns.map((column) =>
    el(
      "th",
      { scope: "col", class: column.words ? "words" : "number" },
      button(column.label, () => press(column), { title: column.title ?? false }),
    ),
  );
  const body = el("tbody");
  const scroller = el(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": name },
    el("table", { class: "heads" }, el("thead", {}, el("tr", {}, ...cells)), body),
  );
  const last = () => Math.max(0, Math.ceil(entries.length / PAGE_ROWS) - 1);
  const where = el("span");
  const turn = (label, words, target) => button(label, () => draw(target()), { "aria-label": words });
  const back = [turn("«", "First page", () => 0), turn("‹", "Previous page", () => page - 1)];
  const on = [turn("›", "Next page", () => page + 1), turn("»", "Last page", last)];
  const pager = el("nav", { class: "pager", "aria-label": pages }, ...back, where, ...on);
  const draw = (wanted) => {
    page = Math.min(wanted, last());
    const first = page * PAGE_ROWS;
    const end = Math.min(first + PAGE_ROWS, entries.length);
    const [from, to, all] = [first + 1, end, entries.length].map((n) => n.toLocaleString("en"));
    where.textContent = `${from}–${to} of ${all}`;
    pager.classList.toggle("off", last() === 0);
    back.forEach((each) => turnOff(each, page === 0));
    on.forEach((each) => turnOff(each, page === last()));
    const none = el("tr", {}, el("td", { class: "empty", colspan: columns.length }, empty));
    body.replaceChildren(...(entries.length ? entries.slice(first, end).map(row) : [none]));
  };
  return {
    ...{ scroller, pager },
    mark(sort) {
      now = sort;
      cells.forEach((cell, i) => {
        const direction = sort.descending ? "descending" : "ascending";
        cell.setAttribute("aria-sort", columns[i].key === sort.key ? direction : "none");
      });
    },
    show(found, keep = false) {
      entries = found;
      draw(keep ? page : 0);
    },
  };
}

/** A row about a head, which its figures point at meanwhile; cells makes the cell of each column. */
export function headRow(columns, cells, cell, view, handlers) {
  return el(
    "tr",
    {
      class: cell === view.cell ? "open" : false,
      on: { pointerenter: () => handlers.point(cell), pointerleave: () => handlers.point(null) },
    },
    ...columns.map(({ key }) => cells[key]()),
  );
}

/** A cell that holds words, or a button of words. */
export function wordsCell(text) {
  return el("td", { class: "words" }, text);
}

/** A cell that holds a number, with what is said more quietly behind it. */
export function numberCell(text, extra = "", strong = false) {
  const quiet = extra && el("span", { class: "quiet" }, ` ${extra}`);
  return el("td", { class: strong ? "number called" : "number" }, text, quiet);
}

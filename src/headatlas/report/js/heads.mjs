/** The table of heads: a row per head × relation, sorted, filtered, a page at a time. */

import { confirmedName, effectName, headName } from "./atlas.mjs";
import { el, freshId } from "./dom.mjs";
import { count, interval, rate, share } from "./format.mjs";
import { filterRows, sortRows, toCsv } from "./rows.mjs";

const PAGE_ROWS = 25;

const COLUMNS = [
  { key: "layer", label: "Layer", ascending: true },
  { key: "head", label: "Head", ascending: true },
  { key: "relation", label: "Relation", ascending: true, words: true },
  { key: "category", label: "Category", ascending: true, words: true },
  { key: "best", label: "Effect", words: true, title: "Sorts by the larger of score and suppression" },
  {
    key: "score",
    label: "Score",
    title: "Share of sources whose target the head ranks in the top k; 95 % interval",
  },
  { key: "q", label: "q", ascending: true, title: "False discovery rate of the score" },
  { key: "suppression", label: "Suppression", title: "The same for the negated logits" },
  {
    key: "suppressionQ",
    label: "q (supp.)",
    ascending: true,
    title: "False discovery rate of the suppression",
  },
  { key: "control", label: "Control", title: "Score of the state itself at that layer, without any head" },
  {
    key: "added",
    label: "Added",
    title: "Share of sources that the head hits and the state itself does not",
  },
  { key: "n", label: "n", title: "Sources used" },
];

const EVIDENCE = { key: "confirmed", label: "Confirmed", words: true, title: "By evidence; see what it can tell" };

/**
 * Build the table.
 *
 * @param handlers pin(cell or null), point(cell or null): a row is looked at.
 * @returns node, sync(reading, filter): filter has chosen, cell and about (words for what it leaves).
 */
export function createHeads(atlas, handlers) {
  const table = {
    atlas,
    handlers,
    columns: COLUMNS.flatMap((each) => (each.key === "best" && atlas.data.evidence ? [each, EVIDENCE] : [each])),
    sort: { key: "best", descending: true },
    page: 0,
    text: "",
    below: false,
    reading: null,
    filter: null,
    shown: [],
    orders: new Map(),
  };
  table.head = createHeader(table);
  table.body = el("tbody");
  table.status = el("p", { class: "quiet", role: "status" });
  table.pinned = el("span", { class: "chip-place" });
  table.pager = createPager(table);
  const scroller = el(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": "Table of heads" },
    el("table", { class: "heads" }, el("thead", {}, table.head.node), table.body),
  );
  const node = el(
    "section",
    {},
    el("h2", {}, "Heads"),
    createToolbar(table),
    table.status,
    scroller,
    table.pager.node,
  );
  return {
    node,
    sync(reading, filter) {
      if (filter.cell !== table.filter?.cell || filter.chosen !== table.filter?.chosen) table.page = 0;
      table.reading = reading;
      table.filter = filter;
      refresh(table);
    },
  };
}

function createHeader(table) {
  const cells = table.columns.map((column) => {
    const button = el(
      "button",
      { type: "button", title: column.title ?? false, on: { click: () => sortBy(table, column) } },
      column.label,
    );
    return el("th", { scope: "col", class: column.words ? "words" : "number" }, button);
  });
  const mark = ({ key, descending }) =>
    cells.forEach((cell, i) => {
      const direction = descending ? "descending" : "ascending";
      cell.setAttribute("aria-sort", table.columns[i].key === key ? direction : "none");
    });
  mark(table.sort);
  return { node: el("tr", {}, ...cells), mark };
}

function sortBy(table, column) {
  const again = table.sort.key === column.key;
  table.sort = { key: column.key, descending: again ? !table.sort.descending : !column.ascending };
  table.head.mark(table.sort);
  table.page = 0;
  refresh(table);
}

function createToolbar(table) {
  const change = (part) => {
    Object.assign(table, part, { page: 0 });
    refresh(table);
  };
  const findId = freshId("find");
  return el(
    "div",
    { class: "toolbar" },
    el(
      "div",
      { class: "control" },
      el("label", { for: findId }, "Find"),
      el("input", {
        type: "search",
        id: findId,
        placeholder: "capital, or a head: 23.4",
        on: { input: (event) => change({ text: event.target.value }) },
      }),
    ),
    el(
      "label",
      { class: "tick" },
      el("input", { type: "checkbox", on: { change: (event) => change({ below: event.target.checked }) } }),
      "also rows below the criterion",
    ),
    table.pinned,
    el("button", { type: "button", class: "push", on: { click: () => download(table) } }, "Download CSV"),
  );
}

function createPager(table) {
  const go = (page) => {
    table.page = page;
    refreshPage(table);
  };
  const where = el("span");
  const button = (label, name, target) =>
    el("button", { type: "button", "aria-label": name, on: { click: () => go(target()) } }, label);
  const last = () => Math.max(0, Math.ceil(table.shown.length / PAGE_ROWS) - 1);
  const back = [button("«", "First page", () => 0), button("‹", "Previous page", () => table.page - 1)];
  const on = [button("›", "Next page", () => table.page + 1), button("»", "Last page", last)];
  const node = el("nav", { class: "pager", "aria-label": "Pages of the table" }, ...back, where, ...on);
  const sync = () => {
    table.page = Math.min(table.page, last());
    node.classList.toggle("off", last() === 0);
    const first = table.page * PAGE_ROWS;
    const end = Math.min(first + PAGE_ROWS, table.shown.length);
    const [from, to, all] = [first + 1, end, table.shown.length].map((n) => n.toLocaleString("en"));
    where.textContent = `${from}–${to} of ${all}`;
    back.forEach((each) => (each.disabled = table.page === 0));
    on.forEach((each) => (each.disabled = table.page === last()));
  };
  return { node, sync };
}

function refresh(table) {
  const { atlas, reading, filter, sort } = table;
  const name = `${sort.key} ${sort.descending}`;
  if (!table.orders.has(name)) table.orders.set(name, sortRows(atlas, sort.key, sort.descending));
  table.shown = filterRows(atlas, reading, table.orders.get(name), {
    chosen: filter.chosen,
    cell: filter.cell,
    text: table.text,
    below: table.below,
  });
  table.status.textContent = describe(table);
  table.pinned.replaceChildren(...(filter.cell === null ? [] : [chip(table)]));
  refreshPage(table);
}

function describe(table) {
  const { atlas, filter, shown, below, reading } = table;
  const parts = [`${count(shown.length, "row")}${below ? "" : " that pass"}`];
  if (filter.cell !== null) parts.push(`head ${headName(atlas, filter.cell)}`);
  if (filter.about) parts.push(filter.about);
  if (below) parts.push("above and below the criterion");
  if (below || reading.everything) parts.push("without heads that hit no source");
  return parts.join(", ");
}

function chip(table) {
  const name = headName(table.atlas, table.filter.cell);
  return el(
    "button",
    {
      type: "button",
      class: "chip",
      "aria-label": `Show all heads again, not only ${name}`,
      on: { click: () => table.handlers.pin(null) },
    },
    `Head ${name} `,
    el("span", { "aria-hidden": "true" }, "×"),
  );
}

function refreshPage(table) {
  table.pager.sync();
  const first = table.page * PAGE_ROWS;
  const rows = table.shown.slice(first, first + PAGE_ROWS).map((row) => createRow(table, row));
  if (!rows.length) {
    rows.push(
      el("tr", {}, el("td", { class: "empty", colspan: table.columns.length }, "No head passes these filters.")),
    );
  }
  table.body.replaceChildren(...rows);
}

function createRow(table, row) {
  const { atlas, reading, handlers } = table;
  const { rows, relations, nHeads } = atlas;
  const relation = relations[rows.relation[row]];
  const cell = rows.cell[row];
  const n = relation.n_sources;
  const effect = reading.effect[row];
  const number = (text, extra = null, strong = false) =>
    el(
      "td",
      { class: strong ? "number called" : "number" },
      text,
      extra && el("span", { class: "quiet" }, ` ${extra}`),
    );
  const pin = el(
    "button",
    {
      type: "button",
      class: "link",
      "aria-label": `Pin head ${headName(atlas, cell)}`,
      on: { click: () => handlers.pin(cell) },
    },
    String(cell % nHeads),
  );
  return el(
    "tr",
    { on: { pointerenter: () => handlers.point(cell), pointerleave: () => handlers.point(null) } },
    number(String(Math.floor(cell / nHeads))),
    el("td", { class: "number" }, pin),
    el("td", { class: "words" }, relation.title),
    el("td", { class: "words" }, atlas.categories[relation.category]),
    el("td", { class: "words" }, effectName(effect)),
    atlas.data.evidence && el("td", { class: "words" }, confirmedName(rows.confirmed[row])),
    number(share(rows.score[row]), interval(rows.hits[row], n), (effect & 1) > 0),
    number(rate(rows.q[row])),
    number(share(rows.suppression[row]), interval(rows.suppressed[row], n), (effect & 2) > 0),
    number(rate(rows.suppressionQ[row])),
    number(share(rows.control[row])),
    number(share(rows.added[row])),
    number(String(n)),
  );
}

function download(table) {
  const blob = new Blob([toCsv(table.atlas, table.reading, table.shown)], { type: "text/csv;charset=utf-8" });
  const url = URL.createObjectURL(blob);
  const name = table.atlas.data.model.replace(/[^\w.-]+/g, "-").slice(0, 80) || "model";
  el("a", { href: url, download: `${name}-heads.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** The table of heads: a row per head × relation, sorted, filtered, a page at a time. */

import { confirmedName, effectName, headName } from "./atlas.mjs";
import { button, el, fileStem, save, turnOff } from "./dom.mjs";
import { count, interval, rate, share } from "./format.mjs";
import { filterRows, sortRows, toCsv } from "./rows.mjs";

const PAGE_ROWS = 25;

const COLUMNS = [
  { key: "head", label: "Head", ascending: true },
  { key: "relation", label: "Relation", ascending: true, words: true },
  { key: "best", label: "Effect", words: true, title: "Sorts by the larger of score and suppression" },
  {
    key: "score",
    label: "Score",
    title: "Share of sources whose target the head ranks in the top k; 95 % interval",
  },
  { key: "q", label: "q", ascending: true, title: "False discovery rate of the score" },
  { key: "control", label: "Control", title: "Score of the state itself at that layer, without any head" },
  {
    key: "added",
    label: "Added",
    title: "Share of sources that the head hits and the state itself does not",
  },
  { key: "suppression", label: "Suppression", title: "The same for the negated logits" },
  {
    key: "suppressionQ",
    label: "q (supp.)",
    ascending: true,
    title: "False discovery rate of the suppression",
  },
  { key: "category", label: "Category", ascending: true, words: true },
  { key: "n", label: "n", title: "Sources used" },
];

const EVIDENCE = {
  key: "confirmed",
  label: "Confirmed",
  words: true,
  title: "By evidence; a dash: not asked",
};

/** Whether a text, with or without a minus before it, names a column that sorts. */
export function sortOf(text) {
  const key = text.replace(/^-/, "");
  const known = [...COLUMNS, EVIDENCE].some((column) => column.key === key);
  return known ? { key, descending: text.startsWith("-") } : { key: "best", descending: true };
}

/**
 * Build the table.
 *
 * @param handlers change(part of the state), open(cell, how), choose(relation index), point(cell or null), drawNow().
 * @returns node, follow(state), sync(view, state).
 */
export function createHeads(atlas, handlers) {
  /** @type {any} */
  const table = {
    ...{ atlas, handlers, page: 0, view: null, state: null, shown: [], order: null },
    columns: COLUMNS.flatMap((each) =>
      each.key === "best" && atlas.data.evidence ? [each, EVIDENCE] : [each],
    ),
  };
  table.head = createHeader(table);
  table.body = el("tbody");
  table.status = el("p", { class: "quiet", role: "status" });
  table.pager = createPager(table);
  const below = el("input", {
    type: "checkbox",
    on: { change: (event) => handlers.change({ below: event.target.checked }) },
  });
  const scroller = el(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": "Table of heads" },
    el("table", { class: "heads" }, el("thead", {}, table.head.node), table.body),
  );
  const node = el(
    "section",
    { "aria-labelledby": "heads-title" },
    el("h2", { id: "heads-title" }, "Table"),
    el(
      "div",
      { class: "toolbar" },
      table.status,
      el("label", { class: "tick" }, below, "also rows below the criterion"),
      button("Download CSV", () => download(table), { class: "push" }),
    ),
    scroller,
    table.pager.node,
  );
  return {
    node,
    follow(state) {
      table.state = state;
      below.checked = state.below;
      table.head.mark(sortOf(state.sort));
    },
    sync: (view, state) => refresh(table, view, state),
  };
}

function createHeader(table) {
  const cells = table.columns.map((column) =>
    el(
      "th",
      { scope: "col", class: column.words ? "words" : "number" },
      button(column.label, () => sortBy(table, column), { title: column.title ?? false }),
    ),
  );
  const mark = ({ key, descending }) =>
    cells.forEach((cell, i) => {
      const direction = descending ? "descending" : "ascending";
      cell.setAttribute("aria-sort", table.columns[i].key === key ? direction : "none");
    });
  return { node: el("tr", {}, ...cells), mark };
}

function sortBy(table, column) {
  const now = sortOf(table.state.sort);
  const descending = now.key === column.key ? !now.descending : !column.ascending;
  table.handlers.change({ sort: `${descending ? "-" : ""}${column.key}` });
}

function createPager(table) {
  const go = (page) => {
    table.page = page;
    refreshPage(table);
  };
  const where = el("span");
  const turn = (label, name, target) => button(label, () => go(target()), { "aria-label": name });
  const last = () => Math.max(0, Math.ceil(table.shown.length / PAGE_ROWS) - 1);
  const back = [turn("«", "First page", () => 0), turn("‹", "Previous page", () => table.page - 1)];
  const on = [turn("›", "Next page", () => table.page + 1), turn("»", "Last page", last)];
  const node = el("nav", { class: "pager", "aria-label": "Pages of the table" }, ...back, where, ...on);
  const sync = () => {
    table.page = Math.min(table.page, last());
    node.classList.toggle("off", last() === 0);
    const first = table.page * PAGE_ROWS;
    const end = Math.min(first + PAGE_ROWS, table.shown.length);
    const [from, to, all] = [first + 1, end, table.shown.length].map((n) => n.toLocaleString("en"));
    where.textContent = `${from}–${to} of ${all}`;
    back.forEach((each) => turnOff(each, table.page === 0));
    on.forEach((each) => turnOff(each, table.page === last()));
  };
  return { node, sync };
}

function refresh(table, view, state) {
  const { atlas } = table;
  const { key, descending } = sortOf(state.sort);
  const before = table.view;
  const made = JSON.stringify([state.sort, state.find, state.below, state.relations, state.categories]);
  const same = before && before.reading === view.reading && table.made === made;
  table.view = view;
  if (!same) {
    if (!before || before.reading !== view.reading || table.sorted !== state.sort) {
      table.order = sortRows(atlas, view.reading, key, descending);
      table.sorted = state.sort;
    }
    if (table.made !== made) table.page = 0;
    table.made = made;
    table.shown = filterRows(view, table.order, { text: state.find, below: state.below });
    table.status.textContent = describe(table);
  }
  if (!same || before.cell !== view.cell) refreshPage(table);
}

function describe({ view, state, shown }) {
  const parts = [`${count(shown.length, "row")}${state.below ? "" : " that pass"}`];
  if (view.about) parts.push(view.about);
  if (state.find.trim()) parts.push(`“${state.find.trim()}”`);
  if (state.below) parts.push("above and below the criterion");
  if (state.below || view.reading.everything) parts.push("without heads that hit no source");
  return parts.join(", ");
}

function refreshPage(table) {
  table.pager.sync();
  const first = table.page * PAGE_ROWS;
  const rows = table.shown.slice(first, first + PAGE_ROWS).map((row) => createRow(table, row));
  if (!rows.length) {
    const cell = el("td", { class: "empty", colspan: table.columns.length }, "No head passes these filters.");
    rows.push(el("tr", {}, cell));
  }
  table.body.replaceChildren(...rows);
}

function createRow(table, row) {
  const { atlas, view, handlers } = table;
  const { reading } = view;
  const { scores } = reading;
  const relation = atlas.relations[atlas.rows.relation[row]];
  const cell = atlas.rows.cell[row];
  const n = relation.n_sources;
  const effect = reading.effect[row];
  const number = (text, extra = "", strong = false) =>
    el(
      "td",
      { class: strong ? "number called" : "number" },
      text,
      extra && el("span", { class: "quiet" }, ` ${extra}`),
    );
  const open = button(headName(atlas, cell), () => handlers.open(cell, "link"), {
    class: "link",
    "aria-label": `Open head ${headName(atlas, cell)}`,
  });
  const choose = button(relation.title, () => handlers.choose(relation.index), {
    class: "link quiet-link",
    title: "Show this relation in the figure",
  });
  const cells = {
    head: () => el("th", { scope: "row", class: "number" }, open),
    relation: () => el("td", { class: "words" }, choose),
    best: () => el("td", { class: "words" }, effectName(effect)),
    confirmed: () => el("td", { class: "words" }, confirmedName(atlas.rows.confirmed[row])),
    score: () => number(share(scores.score[row]), interval(scores.hits[row], n), (effect & 1) > 0),
    q: () => number(rate(scores.q[row])),
    control: () => number(share(scores.control[row])),
    added: () => number(share(scores.addedShare[row])),
    suppression: () =>
      number(share(scores.suppression[row]), interval(scores.suppressed[row], n), (effect & 2) > 0),
    suppressionQ: () => number(rate(scores.suppressionQ[row])),
    category: () => el("td", { class: "words" }, atlas.categories[relation.category]),
    n: () => number(String(n)),
  };
  return el(
    "tr",
    {
      class: cell === view.cell ? "open" : false,
      on: { pointerenter: () => handlers.point(cell), pointerleave: () => handlers.point(null) },
    },
    ...table.columns.map((column) => cells[column.key]()),
  );
}

function download(table) {
  table.handlers.drawNow();
  const csv = toCsv(table.view, table.shown);
  save(`${fileStem(table.atlas.data.model)}-heads.csv`, new Blob([csv], { type: "text/csv;charset=utf-8" }));
}

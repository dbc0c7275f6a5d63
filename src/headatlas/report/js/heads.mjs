/** The table of heads: a row per head × relation, sorted, filtered, a page at a time. */

import { confirmedName, effectName, headName } from "./atlas.mjs";
import { button, el, headButton, relationButton, saveCsv } from "./dom.mjs";
import { count, interval, rate, share } from "./format.mjs";
import { filterRows, sortRows, toCsv } from "./rows.mjs";
import { createTable, headRow, numberCell, sortOf, wordsCell } from "./table.mjs";

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

/**
 * Build the table.
 *
 * @param handlers change(part of the state), open(cell, how), choose(relation index), point(cell or null), drawNow().
 * @returns node, follow(state), sync(view, state).
 */
export function createHeads(atlas, handlers) {
  const columns = COLUMNS.flatMap((each) =>
    each.key === "best" && atlas.data.evidence ? [each, EVIDENCE] : [each],
  );
  const wanted = (state) => sortOf(columns, state.sort, "-best");
  /** @type {any} */
  let shown = null;
  const table = createTable({
    ...{ columns, name: "Table of heads", pages: "Pages of the table" },
    empty: "No head passes these filters.",
    sorted: (sort) => handlers.change({ sort }),
    row: (row) => createRow(atlas, shown.view, columns, row, handlers),
  });
  const status = el("p", { class: "quiet", role: "status" });
  const below = el("input", {
    type: "checkbox",
    on: { change: (event) => handlers.change({ below: event.target.checked }) },
  });
  const download = () => {
    handlers.drawNow();
    saveCsv(atlas.data.model, "heads", toCsv(shown.view, shown.rows));
  };
  const node = el(
    "section",
    { "aria-labelledby": "heads-title" },
    el("h2", { id: "heads-title" }, "Table"),
    el(
      "div",
      { class: "toolbar" },
      status,
      el("label", { class: "tick" }, below, "also rows below the criterion"),
      button("Download CSV", download, { class: "push" }),
    ),
    table.scroller,
    table.pager,
  );
  return {
    node,
    follow(state) {
      below.checked = state.below;
      table.mark(wanted(state));
    },
    sync(view, state) {
      const { reading, cell } = view;
      const asked = JSON.stringify([state.sort, state.find, state.below, state.relations, state.categories]);
      const last = shown;
      const same = last?.asked === asked && last.view.reading === reading;
      if (same && last.view.cell === cell) return;
      const { key, descending } = wanted(state);
      const sorted = last?.sort === state.sort && last.view.reading === reading;
      const order = sorted ? last.order : sortRows(atlas, reading, key, descending);
      const filter = { text: state.find, below: state.below };
      const rows = same ? last.rows : filterRows(view, order, filter);
      shown = { view, asked, order, rows, sort: state.sort };
      status.textContent = describe(view, state, rows.length);
      table.show(rows, last?.asked === asked);
    },
  };
}

function describe(view, state, n) {
  const parts = [`${count(n, "row")}${state.below ? "" : " that pass"}`];
  if (view.about) parts.push(view.about);
  if (state.find.trim()) parts.push(`“${state.find.trim()}”`);
  if (state.below) parts.push("above and below the criterion");
  if (state.below || view.reading.everything) parts.push("without heads that hit no source");
  return parts.join(", ");
}

function createRow(atlas, view, columns, row, handlers) {
  const { reading } = view;
  const { scores } = reading;
  const relation = atlas.relations[atlas.rows.relation[row]];
  const cell = atlas.rows.cell[row];
  const n = relation.n_sources;
  const effect = reading.effect[row];
  const name = headName(atlas, cell);
  const cells = {
    head: () => el("th", { scope: "row", class: "number" }, headButton(name, cell, handlers)),
    relation: () => wordsCell(relationButton(relation, handlers, "link quiet-link")),
    best: () => wordsCell(effectName(effect)),
    confirmed: () => wordsCell(confirmedName(atlas.rows.confirmed[row])),
    score: () => numberCell(share(scores.score[row]), interval(scores.hits[row], n), (effect & 1) > 0),
    q: () => numberCell(rate(scores.q[row])),
    control: () => numberCell(share(scores.control[row])),
    added: () => numberCell(share(scores.addedShare[row])),
    suppression: () =>
      numberCell(share(scores.suppression[row]), interval(scores.suppressed[row], n), (effect & 2) > 0),
    suppressionQ: () => numberCell(rate(scores.suppressionQ[row])),
    category: () => wordsCell(atlas.categories[relation.category]),
    n: () => numberCell(String(n)),
  };
  return headRow(columns, cells, cell, view, handlers);
}

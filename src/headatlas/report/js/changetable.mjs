/** What changed from one atlas to the next: in words, as a table, and on the card of a head. */

import { headName } from "./atlas.mjs";
import { CALLED, CHANGES, changedRows, changeLines } from "./changes.mjs";
import { button, el, headButton, hint, more, relationButton, saveCsv, select } from "./dom.mjs";
import { count, rate, share } from "./format.mjs";
import { csvOf } from "./rows.mjs";
import { createTable, headRow, numberCell, sortOf, wordsCell } from "./table.mjs";

const COLUMNS = [
  { key: "head", label: "Head", ascending: true },
  { key: "relation", label: "Relation", ascending: true, words: true },
  { key: "sign", label: "Effect", ascending: true, words: true },
  { key: "a", label: "Score a" },
  { key: "b", label: "Score b" },
  { key: "difference", label: "b − a", title: "Difference of the scores on the same sources; 95 % interval" },
  { key: "size", label: "Size", title: "Size of the difference, whichever its direction" },
  { key: "p", label: "p", ascending: true, title: "McNemar's exact test on the same sources" },
  { key: "q", label: "q", ascending: true, title: "False discovery rate over all cells that are tested" },
  { key: "change", label: "Change", ascending: true, words: true },
  { key: "called", label: "Called in", words: true },
  { key: "n", label: "n", title: "Sources that both can use" },
];
/** Rows on a card before the others are asked for. */
const ON_CARD = 6;

/** A difference with its sign. */
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

/**
 * Build the section of changes; null where nothing is compared head by head.
 *
 * @param handlers as of the table of heads.
 * @returns node, follow(state), sync(view, state).
 */
export function createChanges(atlas, comparison, handlers) {
  if (!comparison?.steps.length) return null;
  const { steps } = comparison;
  const wanted = (state) => sortOf(COLUMNS, state.csort, "-size");
  /** @type {any} */
  let shown = null;
  const table = createTable({
    ...{ columns: COLUMNS, name: "Table of changes", pages: "Pages of the table of changes" },
    empty: "No head × relation passes these filters.",
    sorted: (csort) => handlers.change({ csort }),
    row: (row) => changeRow(shown.view, row, handlers),
  });
  const which = select(
    "From … to",
    [["", steps.map((step, at) => [String(at + 1), `${step.a} → ${step.b}`])]],
    (value) => handlers.change({ step: Number(value) }),
  );
  which.node.hidden = steps.length < 2;
  const title = el("h2", { id: "changes-title" });
  const words = el("ul", { class: "change-words" });
  const status = el("p", { class: "quiet", role: "status" });
  const kept = el("input", {
    type: "checkbox",
    on: { change: (event) => handlers.change({ kept: event.target.checked }) },
  });
  const download = () => {
    handlers.drawNow();
    saveCsv(
      `${shown.view.step.a}-${shown.view.step.b}`,
      "changes",
      csvOf(changeLines(shown.view, shown.rows)),
    );
  };
  const node = el(
    "section",
    { "aria-labelledby": "changes-title" },
    title,
    words,
    el("p", { class: "quiet" }, fixedWords(atlas)),
    el(
      "div",
      { class: "toolbar" },
      which.node,
      status,
      el("label", { class: "tick" }, kept, "also what is not shown to differ"),
      button("Download CSV of changes", download, { class: "push" }),
    ),
    table.scroller,
    table.pager,
  );
  return {
    node,
    follow(state) {
      kept.checked = state.kept;
      which.input.value = String(state.step);
      table.mark(wanted(state));
    },
    sync(view, state) {
      const { find: text, step, csort, relations, categories, sign } = state;
      const asked = JSON.stringify([step, csort, text, state.kept, relations, categories, sign]);
      const same = shown?.asked === asked;
      if (same && shown.view.cell === view.cell) return;
      const rows = same ? shown.rows : changedRows(view, { text, kept: state.kept, ...wanted(state) });
      if (shown?.view.step !== view.step) {
        title.textContent = `What changed from ${view.step.a} (a) to ${view.step.b} (b)`;
        words.replaceChildren(...sentences(view.step.words).map((each) => el("li", {}, each)));
      }
      shown = { view, asked, rows };
      status.textContent = describe(view, state, rows.length);
      table.show(rows, same);
    },
  };
}

function describe({ step, about }, state, n) {
  const parts = [count(n, state.kept ? "cell" : "change")];
  if (about) parts.push(about);
  if (state.find.trim()) parts.push(`“${state.find.trim()}”`);
  if (state.kept && step.left_out) parts.push(`without ${count(step.left_out, "cell")} called in neither`);
  return parts.join(", ");
}

/** Sentences of a text, which end with a full stop before a capital. */
function sentences(text) {
  return text.split(/(?<=\.) (?=[A-Z])/);
}

/** How both were read, which the sliders leave as it is. */
export function fixedWords(atlas) {
  return (
    `Compared at ${atlas.data.rule}, on the sources that both can use. The sliders above do not change it; ` +
    "relations, categories, effect and search do. Heads are matched by layer and number."
  );
}

function changeRow(view, row, handlers) {
  const { atlas, comparison, step } = view;
  const cell = step.cell[row];
  const relation = comparison.relations[step.relation[row]];
  const choose = () => relationButton(relation, handlers, "link quiet-link");
  const range = `${signed(step.low[row])} to ${signed(step.high[row])}`;
  const differs = step.change[row] > 0;
  const cells = {
    head: () =>
      el("th", { scope: "row", class: "number" }, headButton(headName(atlas, cell), cell, handlers)),
    relation: () => wordsCell(relation.index >= 0 ? choose() : relation.title),
    sign: () => wordsCell(step.down[row] ? "suppresses" : "promotes"),
    a: () => numberCell(share(step.scoreA[row]), "", (step.called[row] & 1) > 0),
    b: () => numberCell(share(step.scoreB[row]), "", (step.called[row] & 2) > 0),
    difference: () => numberCell(signed(step.difference[row]), range, differs),
    size: () => numberCell(share(Math.abs(step.difference[row]))),
    p: () => numberCell(rate(step.p[row])),
    q: () => numberCell(rate(step.q[row])),
    change: () => wordsCell(CHANGES[step.change[row]]),
    called: () => wordsCell(CALLED[step.called[row]]),
    n: () => numberCell(String(step.n[row])),
  };
  return headRow(COLUMNS, cells, cell, view, handlers);
}

/** The cells of one head on its card: both scores and the paired test of each. */
export function changesOf(view) {
  const { step, cell } = view;
  if (!step) return [];
  const rows = [...(step.rowsOf.get(cell) ?? [])].sort(
    (x, y) =>
      Number(step.change[y] > 0) - Number(step.change[x] > 0) ||
      step.called[y] - step.called[x] ||
      Math.abs(step.difference[y]) - Math.abs(step.difference[x]),
  );
  const changed = rows.filter((row) => step.change[row]).length;
  const list = (some) => el("ul", { class: "card-changes" }, ...some.map((row) => changeLine(view, row)));
  const first = Math.max(ON_CARD, changed);
  return [
    el(
      "h3",
      {},
      `From ${step.a} (a) to ${step.b} (b) `,
      el("span", { class: "count" }, changed ? `${changed} differ` : "none shown to differ"),
    ),
    rows.length
      ? list(rows.slice(0, first))
      : el("p", { class: "quiet" }, "Called in neither, and each source is hit in both or in neither."),
    more(rows.length - first, "compared relation", () => list(rows.slice(first))),
    hint(
      "p, q of a change?",
      "Both models are asked the same sources. p is McNemar's exact test of those hit in one alone; q looks at " +
        "all cells that are tested, and is a dash where fewer than six sources differ. Bold scores are called.",
    ),
  ];
}

function changeLine({ comparison, step }, row) {
  const score = (values, bit) => el(step.called[row] & bit ? "b" : "span", {}, share(values[row]));
  const range = `${signed(step.low[row])} to ${signed(step.high[row])}`;
  return el(
    "li",
    {},
    el(step.change[row] ? "strong" : "span", {}, comparison.relations[step.relation[row]].title),
    step.down[row] ? " suppresses: " : ": ",
    step.change[row] ? el("strong", {}, CHANGES[step.change[row]]) : CHANGES[0],
    el("br"),
    "a ",
    score(step.scoreA, 1),
    " → b ",
    score(step.scoreB, 2),
    `, ${signed(step.difference[row])} (${range}), p ${rate(step.p[row])}, q ${rate(step.q[row])}`,
  );
}

/** What changed from one atlas to the next, head by head (report/comparison.py). Pure functions, no document. */

import { headName, headNamed, isMapped, SIGNS } from "./atlas.mjs";
import { unfixed } from "./unpack.mjs";

/** What a cell (a head, a relation and a sign) shows, as the arrays count it. */
export const CHANGES = ["not shown to differ", "lost", "gained", "weaker", "stronger"];
export const CALLED = ["neither", "a", "b", "both"];
const [, LOST, GAINED, WEAKER, STRONGER] = CHANGES.keys();

/** Of a head as a whole: the first of these that its cells show. Colours are --change-0 …. */
export const HEAD_CHANGES = [
  "gained a relation",
  "lost a relation",
  "lost one and gained another",
  "a score rose without that",
  "a score fell without that",
  "called, and not shown to differ",
];

/**
 * The comparison with its unpacked sections; null where the page has none.
 *
 * @param {Comparison | null} data
 * @param {Record<string, any>[]} cells of each step
 * @param {Record<string, any> | null} scores
 */
export function decodeChanges(atlas, data, cells, scores) {
  if (!data) return null;
  const names = atlas.relations.map((relation) => relation.name);
  const relations = data.relations.map((each) => ({ ...each, index: names.indexOf(each.name) }));
  const steps = data.steps.map((step, at) => {
    const own = cells[at];
    const rowsOf = new Map();
    own.cell.forEach((cell, row) => rowsOf.set(cell, [...(rowsOf.get(cell) ?? []), row]));
    const portion = (only) => Float64Array.from(own.n, (n, row) => (own.both[row] + only[row]) / n);
    const [a, b] = [portion(own.only_a), portion(own.only_b)];
    const difference = Float64Array.from(own.n, (n, row) => (own.only_b[row] - own.only_a[row]) / n);
    return {
      ...step,
      ...own,
      length: own.cell.length,
      at,
      rowsOf,
      scoreA: a,
      scoreB: b,
      difference,
    };
  });
  const scoresOf = Object.fromEntries(
    Object.entries(scores ?? {}).map(([name, values]) => [name, values && unfixed(values)]),
  );
  return { data, relations, steps, scoresOf };
}

/** Whether a row of a step is about the relations and the effect that are asked for. */
function isAsked({ comparison, chosen, reading }, step, row) {
  if (!(SIGNS[reading.thresholds.sign ?? "both"] & (step.down[row] ? 2 : 1))) return false;
  return chosen === null || chosen.has(comparison.relations[step.relation[row]].index);
}

/** Of every head the place of what it shows among HEAD_CHANGES; -1 for nothing. */
export function changeOfHeads(context) {
  const { atlas, step } = context;
  const out = new Int8Array(atlas.nCells).fill(-1);
  const found = new Map();
  for (let row = 0; row < step.length; row += 1) {
    if (!isAsked(context, step, row)) continue;
    const cell = step.cell[row];
    const seen = found.get(cell) ?? { kinds: new Set(), most: 0, called: false };
    seen.kinds.add(step.change[row]);
    seen.called ||= step.called[row] > 0;
    const moved = step.change[row] === WEAKER || step.change[row] === STRONGER;
    if (moved && Math.abs(step.difference[row]) > Math.abs(seen.most)) seen.most = step.difference[row];
    found.set(cell, seen);
  }
  for (const [cell, { kinds, most, called }] of found) {
    if (kinds.has(GAINED)) out[cell] = kinds.has(LOST) ? 2 : 0;
    else if (kinds.has(LOST)) out[cell] = 1;
    else if (most) out[cell] = most > 0 ? 3 : 4;
    else if (called) out[cell] = 5;
  }
  return out;
}

/** Best score of each head in the atlas before a step (0) or after it (1), at the k of the comparison. */
function bestOfHeads({ atlas, comparison, step, chosen, reading }, side) {
  const out = Float64Array.from({ length: atlas.nCells }, (_, cell) => (isMapped(atlas, cell) ? 0 : NaN));
  const asked = reading.thresholds.sign ?? "both";
  for (const sign of ["promotion", "suppression"]) {
    if (!(SIGNS[asked] & SIGNS[sign])) continue;
    const values = comparison.scoresOf[`${step.at + side}/${sign}`];
    comparison.relations.forEach(({ index }, at) => {
      if (chosen !== null && !chosen.has(index)) return;
      for (let cell = 0; cell < out.length; cell += 1) {
        const own = values[at * out.length + cell];
        if (own > out[cell]) out[cell] = own;
      }
    });
  }
  return out;
}

/** Measures of heads that a comparison adds; none without steps. */
export function measuresOfChanges(comparison) {
  if (!comparison?.steps.length) return [];
  const [only] = comparison.steps.length === 1 ? comparison.steps : [null];
  const after = (context) => bestOfHeads(context, 1);
  const before = (context) => bestOfHeads(context, 0);
  return [
    { name: "before", title: `best score in ${only?.a ?? "the atlas before"}`, share: true, values: before },
    { name: "after", title: `best score in ${only?.b ?? "the atlas after"}`, share: true, values: after },
    {
      name: "difference",
      title: "difference of the best score",
      diverging: true,
      values: (context) => {
        const least = before(context);
        return after(context).map((value, cell) => value - least[cell]);
      },
    },
  ];
}

// Rows ------------------------------------------------------------------------------------------------

const KEYS = {
  head: (step, row) => step.cell[row],
  sign: (step, row) => step.down[row],
  a: (step, row) => step.scoreA[row],
  b: (step, row) => step.scoreB[row],
  difference: (step, row) => step.difference[row],
  size: (step, row) => Math.abs(step.difference[row]),
  p: (step, row) => step.p[row],
  q: (step, row) => step.q[row],
  change: (step, row) => step.change[row] || Infinity,
  called: (step, row) => step.called[row],
  n: (step, row) => step.n[row],
};

/**
 * Rows of the step in the order of a column: those that changed, with `kept` also the others.
 *
 * @param context atlas, comparison, step, chosen, reading.
 * @param wanted text: words that must all be true of a row; kept; key and descending.
 */
export function changedRows(context, { text, kept, key, descending }) {
  const { comparison, step } = context;
  const tests = text
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => wordTest(context, word));
  const rows = [];
  for (let row = 0; row < step.length; row += 1) {
    if (!kept && !step.change[row]) continue;
    if (isAsked(context, step, row) && tests.every((test) => test(row))) rows.push(row);
  }
  const titles = comparison.relations.map((each) => each.title);
  const order = [...titles].sort((a, b) => a.localeCompare(b, "en"));
  const byTitle = (_, row) => order.indexOf(titles[step.relation[row]]);
  const keyOf = key === "relation" ? byTitle : KEYS[key];
  const value = (row) => {
    const own = keyOf(step, row);
    return Number.isNaN(own) ? Infinity : descending ? -own : own;
  };
  return rows.sort((x, y) => {
    const [first, second] = [value(x), value(y)];
    if (first !== second) return first < second ? -1 : 1;
    return Math.abs(step.difference[y]) - Math.abs(step.difference[x]) || step.cell[x] - step.cell[y];
  });
}

/** What a word says of a row: a head, a layer, or text in relation, effect, change, and in which atlas it is called. */
function wordTest({ atlas, comparison, step }, word) {
  const cell = headNamed(atlas, word);
  if (cell !== null) return (row) => step.cell[row] === cell;
  const layer = /^l?(\d+)\.?$/.exec(word);
  if (layer) return (row) => Math.floor(step.cell[row] / atlas.nHeads) === Number(layer[1]);
  return (row) => {
    const { name, title } = comparison.relations[step.relation[row]];
    const effect = step.down[row] ? "suppresses" : "promotes";
    return `${name} ${title} ${effect} ${CHANGES[step.change[row]]}`.toLowerCase().includes(word);
  };
}

const CSV_COLUMNS = [
  ...["layer", "head", "relation", "sign", "score_a", "score_b", "difference", "low", "high", "p", "q"],
  ...["change", "called_in", "category", "n_sources", "only_a", "only_b", "a", "b"],
];

/** The rows as lines of CSV, with a header line: those of `headatlas compare --data`. */
export function changeLines({ atlas, comparison, step }, rows) {
  const lines = rows.map((row) => {
    const { name, category } = comparison.relations[step.relation[row]];
    return [
      ...[...headName(atlas, step.cell[row]).split(".").map(Number), name],
      ...[step.down[row] ? "suppression" : "promotion", step.scoreA[row], step.scoreB[row]],
      ...[step.difference[row], step.low[row], step.high[row], step.p[row], step.q[row]],
      ...[
        step.change[row] ? CHANGES[step.change[row]] : "",
        step.called[row] ? CALLED[step.called[row]] : "",
      ],
      ...[category, step.n[row], step.only_a[row], step.only_b[row], step.a, step.b],
    ];
  });
  return [CSV_COLUMNS, ...lines];
}

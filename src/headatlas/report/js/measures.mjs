/** One number per head: what the figure and the scatter can show, the layer profile, and likeness. Pure functions. */

import { isMapped, PROMOTES, SIGNS, strength } from "./atlas.mjs";
import { unfixed } from "./unpack.mjs";

/** Measurements of heads as wholes, from their section. */
export function decodeHeads(section, nCells) {
  const { behaviours: names = [], labels = [], captions = {} } = section.json ?? {};
  const column = (name) => (section[name] ? unfixed(section[name]) : null);
  const parts = Object.fromEntries(
    ["value", "expected", "low", "high", "q"].map((name) => [name, column(`behaviour/${name}`)]),
  );
  const called = section["behaviour/called"];
  const behaviours = names.map((name, at) => {
    const mine = (values) => values.subarray(at * nCells, (at + 1) * nCells);
    const own = Object.fromEntries(Object.entries(parts).map(([part, values]) => [part, mine(values)]));
    // Those that are no share of attention have no expected level and are not tested.
    return { name, ...own, called: mine(called), tested: own.q.some((q) => !Number.isNaN(q)) };
  });
  const labelsOf = new Map();
  for (const [cell, label, support, score, chance, se, author, kind] of labels) {
    if (!labelsOf.has(cell)) labelsOf.set(cell, []);
    const numbers = { score: score ?? NaN, chance: chance ?? NaN, se: se ?? NaN };
    labelsOf.get(cell).push({ label, support, ...numbers, author, kind });
  }
  return {
    behaviours,
    labelsOf,
    captions,
    effectiveRank: column("effective_rank"),
    copying: column("copying"),
    normShare: column("norm_share"),
    explained: column("explained"),
  };
}

/** "previous_token" as words. */
export function spoken(name) {
  return name.replaceAll("_", " ");
}

/**
 * @typedef {{name: string, title: string, share?: boolean, behaviour?: any, values: (context: any) => Float64Array}}
 *     Measure
 */

/**
 * All measures: name, title, group, and values(context) → Float64Array [cell], NaN where there is none. Those with
 * `share` lie from 0 to 1.
 *
 * The context has atlas, heads, reading and chosen (relation indices or null).
 */
export function measuresOf(atlas, heads) {
  /** @type {Measure[]} */
  const list = [
    {
      name: "layer",
      title: "layer",
      values: () => Float64Array.from({ length: atlas.nCells }, (_, cell) => Math.floor(cell / atlas.nHeads)),
    },
    {
      name: "head",
      title: "head",
      values: () => Float64Array.from({ length: atlas.nCells }, (_, cell) => cell % atlas.nHeads),
    },
    { name: "score", title: "best score", share: true, values: (context) => bestOfHeads(context, "score") },
    {
      name: "suppression",
      title: "best suppression",
      share: true,
      values: (context) => bestOfHeads(context, "suppression"),
    },
    {
      name: "added",
      title: "best added",
      share: true,
      values: (context) => bestOfHeads(context, "addedShare"),
    },
    { name: "control", title: "control of the best relation", share: true, values: controlOfBest },
    { name: "categories", title: "categories", values: ({ reading }) => Float64Array.from(reading.level) },
    { name: "relations", title: "relations", values: countRelations },
  ];
  for (const behaviour of heads.behaviours) {
    list.push({
      name: `looks:${behaviour.name}`,
      title: `looks: ${spoken(behaviour.name)}`,
      share: behaviour.tested,
      behaviour,
      values: () => behaviour.value,
    });
  }
  /** @type {[string, string, string, boolean][]} */
  const whole = [
    ["effectiveRank", "effective_rank", "effective rank", false],
    ["copying", "copying", "copying (−1 … 1)", false],
    ["normShare", "norm_share", "share of the layer's norm", true],
    ["explained", "explained", "salience explained", true],
  ];
  for (const [key, name, title, share] of whole) {
    if (heads[key]) list.push({ name, title, share, values: () => heads[key] });
  }
  return list;
}

function eachChosen({ atlas, chosen }, visit) {
  for (const relation of atlas.scored) {
    if (chosen && !chosen.has(relation.index)) continue;
    for (let row = relation.first; row < relation.last; row += 1) visit(row, atlas.rows.cell[row], relation);
  }
}

/** 0 in mapped layers, NaN in the others. */
function blank(atlas) {
  return Float64Array.from({ length: atlas.nCells }, (_, cell) => (isMapped(atlas, cell) ? 0 : NaN));
}

function bestOfHeads(context, column) {
  const out = blank(context.atlas);
  const values = context.reading.scores[column];
  eachChosen(context, (row, cell) => (out[cell] = Math.max(out[cell], values[row])));
  return out;
}

function controlOfBest(context) {
  const out = blank(context.atlas);
  const best = new Float64Array(out.length);
  const { score, control } = context.reading.scores;
  eachChosen(context, (row, cell) => {
    if (score[row] <= best[cell]) return;
    best[cell] = score[row];
    out[cell] = control[row];
  });
  return out;
}

function countRelations(context) {
  const out = blank(context.atlas);
  eachChosen(context, (row, cell) => (out[cell] += context.reading.effect[row] ? 1 : 0));
  return out;
}

/** Of each head the strongest of the chosen relations: value, and whether it suppresses. */
export function strongest(context) {
  const { atlas, reading } = context;
  const value = blank(atlas);
  const down = new Uint8Array(atlas.nCells);
  eachChosen(context, (row, cell) => {
    const own = strength(reading, row);
    if (own <= value[cell]) return;
    value[cell] = own;
    const { score, suppression } = reading.scores;
    const asked = SIGNS[reading.thresholds.sign ?? "both"];
    down[cell] = (asked & PROMOTES ? score[row] : 0) < suppression[row] && asked !== PROMOTES ? 1 : 0;
  });
  return { value, down };
}

/**
 * By layer: heads that count, of each category; and the best score of the chosen relations, with the control of that
 * relation: NaN where it is suppressed, which has none.
 */
export function profile(context) {
  const { atlas, reading } = context;
  const counts = reading.member.map((heads) => {
    const layers = new Float64Array(atlas.nLayers);
    heads.forEach((on, cell) => (layers[Math.floor(cell / atlas.nHeads)] += on));
    return layers;
  });
  const best = Float64Array.from(atlas.mapped, (done) => (done ? 0 : NaN));
  const control = best.slice();
  const promotes = SIGNS[reading.thresholds.sign ?? "both"] & PROMOTES;
  const { score, control: ofState } = reading.scores;
  eachChosen(context, (row, cell) => {
    const layer = Math.floor(cell / atlas.nHeads);
    const own = strength(reading, row);
    if (own <= best[layer]) return;
    best[layer] = own;
    control[layer] = promotes && score[row] >= own ? ofState[row] : NaN;
  });
  return { counts, best, control };
}

const N_SIMILAR = 5;

/**
 * The heads most like one, as headatlas.atlas.cards.similar_heads: cosine of the scores over relations, promotion and
 * suppression side by side, and 1 − the mean absolute difference of the tested behaviours; the mean of those that the
 * head itself has. Others that lack one of these, or are not mapped, are left out: a mean of one term is no match for
 * one of two.
 */
export function similarHeads({ atlas, heads, reading }, cell) {
  const writes = cosines(atlas, reading.scores, cell);
  const looks = likeLooks(
    heads.behaviours.filter((each) => each.tested),
    atlas.nCells,
    cell,
  );
  const terms = [writes, looks].filter((values) => values !== null);
  const found = [];
  for (let other = 0; other < atlas.nCells; other += 1) {
    const similarity = terms.reduce((sum, values) => sum + values[other], 0) / terms.length;
    if (other === cell || !isMapped(atlas, other) || Number.isNaN(similarity)) continue;
    found.push({ cell: other, similarity });
  }
  return found.sort((a, b) => b.similarity - a.similarity || a.cell - b.cell).slice(0, N_SIMILAR);
}

function cosines(atlas, { score, suppression }, cell) {
  const { rows, nCells } = atlas;
  const own = new Map();
  const { start, order } = atlas.rowsOfCell;
  for (let i = start[cell]; i < start[cell + 1]; i += 1) {
    own.set(rows.relation[order[i]], [score[order[i]], suppression[order[i]]]);
  }
  const products = new Float64Array(nCells);
  const squares = new Float64Array(nCells);
  for (let row = 0; row < rows.length; row += 1) {
    const mine = own.get(rows.relation[row]);
    squares[rows.cell[row]] += score[row] ** 2 + suppression[row] ** 2;
    if (mine) products[rows.cell[row]] += score[row] * mine[0] + suppression[row] * mine[1];
  }
  if (!squares[cell]) return null;
  return products.map((product, other) =>
    squares[other] ? product / Math.sqrt(squares[other] * squares[cell]) : 0,
  );
}

function likeLooks(behaviours, nCells, cell) {
  if (behaviours.every(({ value }) => Number.isNaN(value[cell]))) return null;
  return Float64Array.from({ length: nCells }, (_, other) => {
    let sum = 0;
    let n = 0;
    for (const { value } of behaviours) {
      const difference = Math.abs(value[other] - value[cell]);
      if (Number.isNaN(difference)) continue;
      sum += difference;
      n += 1;
    }
    return n ? 1 - sum / n : NaN;
  });
}

/** Kind and text of a label that says nothing sure (headatlas.atlas.labels). */
export const UNCLEAR = "unclear";
export const BY_MAPPINGS = "mappings";
const SINK = "first_position";

/** Kinds of tested statements about a head, of which `statementOf` names the first that it has. */
export const STATEMENTS = [
  ["relation", "a relation"],
  ["description", "a scored description"],
  ["behaviour", "attention, beyond the first position"],
  ["sink", "attention to the first position alone"],
];

/** Which kinds of tested statements a head has, as headatlas.atlas.cards.coverage counts them. */
function kindsOf({ heads, reading }, cell) {
  const called = heads.behaviours.filter((each) => each.called[cell]);
  const labels = heads.labelsOf.get(cell) ?? [];
  return {
    relation: reading.tested[cell] > 0,
    description: labels.some((each) => each.kind === BY_MAPPINGS && each.label !== UNCLEAR),
    behaviour: called.some((each) => each.name !== SINK),
    sink: called.some((each) => each.name === SINK),
  };
}

/** The first kind of tested statement that a head has, as its place among STATEMENTS; -1 for none. */
export function statementOf(context, cell) {
  const kinds = kindsOf(context, cell);
  return STATEMENTS.findIndex(([kind]) => kinds[kind]);
}

/** How many mapped heads have a tested statement, and one beyond attention to the first position. */
export function coverage(context) {
  const { atlas } = context;
  let any = 0;
  let more = 0;
  for (let cell = 0; cell < atlas.nCells; cell += 1) {
    if (!isMapped(atlas, cell)) continue;
    const at = statementOf(context, cell);
    if (at >= 0) any += 1;
    if (at >= 0 && STATEMENTS[at][0] !== "sink") more += 1;
  }
  return { any, more, total: atlas.nMapped };
}

/** Sorting, filtering and writing out the rows of the heads table. Pure functions, no document. */

import { confirmedName, effectName, strength } from "./atlas.mjs";
import { wilson } from "./format.mjs";
import { rowTest, wordsOf } from "./words.mjs";

/** What each sortable column is sorted by; numbers ascending, text by its alphabetical rank. */
function sortKey(atlas, reading, column) {
  const { rows, relations, nHeads } = atlas;
  const ranks = (texts) => {
    const sorted = [...new Set(texts)].sort((a, b) => a.localeCompare(b, "en"));
    return texts.map((text) => sorted.indexOf(text));
  };
  const titles = ranks(relations.map((relation) => relation.title));
  const categories = ranks(relations.map((relation) => atlas.categories[relation.category]));
  const keys = {
    best: (row) => strength(reading, row),
    head: (row) => rows.cell[row],
    layer: (row) => Math.floor(rows.cell[row] / nHeads),
    relation: (row) => titles[rows.relation[row]],
    category: (row) => categories[rows.relation[row]],
    added: (row) => reading.scores.addedShare[row],
    confirmed: (row) => rows.confirmed[row],
    n: (row) => relations[rows.relation[row]].n_sources,
  };
  return keys[column] ?? ((row) => reading.scores[column][row]);
}

/** All rows in the order of a column; ties by layer, head and the order of the relations; unknown last. */
export function sortRows(atlas, reading, column, descending) {
  const { rows } = atlas;
  const keyOf = sortKey(atlas, reading, column);
  const sign = descending ? -1 : 1;
  const keys = new Float64Array(rows.length);
  for (let row = 0; row < rows.length; row += 1) {
    const key = keyOf(row);
    keys[row] = Number.isNaN(key) ? Infinity : sign * key;
  }
  const order = Uint32Array.from({ length: rows.length }, (_, row) => row);
  return order.sort((a, b) => {
    if (keys[a] !== keys[b]) return keys[a] - keys[b];
    return rows.cell[a] - rows.cell[b] || rows.relation[a] - rows.relation[b];
  });
}

/**
 * The rows that pass, in the order given.
 *
 * @param context atlas, heads, reading and chosen (relation indices, or null for all).
 * @param filter text: words that must all be true of a row; below: also rows under the criterion that score at all.
 */
export function filterRows(context, order, { text, below }) {
  const { atlas, reading, chosen } = context;
  const tests = wordsOf(text).map((word) => rowTest(context, word));
  const shown = [];
  for (const row of order) {
    if (!(below ? strength(reading, row) > 0 : reading.effect[row])) continue;
    if (chosen !== null && !chosen.has(atlas.rows.relation[row])) continue;
    if (tests.every((test) => test(row))) shown.push(row);
  }
  return shown;
}

const CSV_COLUMNS = [
  ...["layer", "head", "relation", "title", "category", "effect", "k"],
  ...["score", "low", "high", "q", "suppression", "suppression_low", "suppression_high", "suppression_q"],
  ...["control", "added", "n_sources", "confirmed"],
];

/** The rows as CSV with a header line (RFC 4180). */
export function toCsv({ atlas, reading }, shown) {
  const { rows, relations, nHeads } = atlas;
  const { scores } = reading;
  /** @type {any[][]} */
  const lines = [CSV_COLUMNS];
  for (const row of shown) {
    const relation = relations[rows.relation[row]];
    const n = relation.n_sources;
    lines.push([
      Math.floor(rows.cell[row] / nHeads),
      rows.cell[row] % nHeads,
      relation.name,
      relation.title,
      atlas.categories[relation.category],
      reading.effect[row] ? effectName(reading.effect[row]) : "",
      relation.copying ? scores.kCopy : scores.k,
      scores.score[row],
      ...wilson(scores.hits[row], n),
      scores.q[row],
      scores.suppression[row],
      ...wilson(scores.suppressed[row], n),
      scores.suppressionQ[row],
      scores.control[row],
      scores.addedShare[row],
      n,
      rows.confirmed[row] ? confirmedName(rows.confirmed[row]) : "",
    ]);
  }
  return csvOf(lines);
}

/** Lines of fields as CSV. */
export function csvOf(lines) {
  return lines.map((fields) => `${fields.map(csvField).join(",")}\r\n`).join("");
}

function csvField(value) {
  if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
  // A leading =, +, - or @ would be run as a formula by spreadsheets.
  const text = /^\s*[=+\-@]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Sorting, filtering and writing out the rows of the heads table. Pure functions, no document. */

import { confirmedName, effectName } from "./atlas.mjs";
import { wilson } from "./format.mjs";

/** What each sortable column is sorted by; numbers ascending, text by its alphabetical rank. */
function sortKey(atlas, column) {
  const { rows, relations, nHeads } = atlas;
  const ranks = (texts) => {
    const sorted = [...new Set(texts)].sort((a, b) => a.localeCompare(b, "en"));
    return texts.map((text) => sorted.indexOf(text));
  };
  const titles = ranks(relations.map((relation) => relation.title));
  const categories = ranks(relations.map((relation) => atlas.categories[relation.category]));
  const keys = {
    best: (row) => Math.max(rows.score[row], rows.suppression[row]),
    layer: (row) => Math.floor(rows.cell[row] / nHeads),
    head: (row) => rows.cell[row] % nHeads,
    relation: (row) => titles[rows.relation[row]],
    category: (row) => categories[rows.relation[row]],
    n: (row) => relations[rows.relation[row]].n_sources,
  };
  return keys[column] ?? ((row) => rows[column][row]);
}

/** All rows in the order of a column; ties by layer, head and the order of the relations; unknown last. */
export function sortRows(atlas, column, descending) {
  const { rows } = atlas;
  const keyOf = sortKey(atlas, column);
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
 * @param filter chosen: set of relation indices or null; cell: one head or null; text: words that must all
 *     occur in the head's name, the relation or the category; below: also rows under the criterion.
 */
export function filterRows(atlas, reading, order, filter) {
  const { rows } = atlas;
  const accepts = relationTest(atlas, filter.text);
  const shown = [];
  for (const row of order) {
    if (!filter.below && !reading.effect[row]) continue;
    if (filter.cell !== null && rows.cell[row] !== filter.cell) continue;
    if (filter.chosen !== null && !filter.chosen.has(rows.relation[row])) continue;
    if (accepts(row)) shown.push(row);
  }
  return shown;
}

function relationTest(atlas, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return () => true;
  const heads = words.filter((word) => /^\d+\.\d*$/.test(word));
  const others = words.filter((word) => !heads.includes(word));
  const passes = atlas.relations.map((relation) => {
    const about = `${relation.title} ${relation.name} ${atlas.categories[relation.category]}`.toLowerCase();
    return others.every((word) => about.includes(word));
  });
  const { rows, nHeads } = atlas;
  return (row) => {
    if (!passes[rows.relation[row]]) return false;
    const cell = rows.cell[row];
    return heads.every((word) => {
      const [layer, head] = word.split(".");
      return Number(layer) === Math.floor(cell / nHeads) && (head === "" || Number(head) === cell % nHeads);
    });
  };
}

const CSV_COLUMNS = [
  "layer",
  "head",
  "relation",
  "title",
  "category",
  "effect",
  "score",
  "low",
  "high",
  "q",
  "suppression",
  "suppression_low",
  "suppression_high",
  "suppression_q",
  "control",
  "added",
  "n_sources",
  "confirmed",
];

/** The rows as CSV with a header line (RFC 4180). */
export function toCsv(atlas, reading, shown) {
  const { rows, relations, nHeads } = atlas;
  const lines = [CSV_COLUMNS.join(",")];
  for (const row of shown) {
    const relation = relations[rows.relation[row]];
    const n = relation.n_sources;
    lines.push(
      [
        Math.floor(rows.cell[row] / nHeads),
        rows.cell[row] % nHeads,
        relation.name,
        relation.title,
        atlas.categories[relation.category],
        reading.effect[row] ? effectName(reading.effect[row]) : "",
        rows.score[row],
        ...wilson(rows.hits[row], n),
        rows.q[row],
        rows.suppression[row],
        ...wilson(rows.suppressed[row], n),
        rows.suppressionQ[row],
        rows.control[row],
        rows.added[row],
        n,
        rows.confirmed[row] ? confirmedName(rows.confirmed[row]) : "",
      ]
        .map(csvField)
        .join(","),
    );
  }
  return `${lines.join("\r\n")}\r\n`;
}

function csvField(value) {
  if (typeof value === "number") return Number.isNaN(value) ? "" : String(Number(value.toPrecision(6)));
  // A leading =, +, - or @ would be run as a formula by spreadsheets.
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

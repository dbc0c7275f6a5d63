/**
 * Reading the atlas: which heads count under which criterion. Pure functions, no document.
 *
 * A head is named by its cell, layer * nHeads + head. A row is one head × relation with at least one hit; the
 * columns of all rows are typed arrays of equal length.
 */

export const PROMOTES = 1;
export const SUPPRESSES = 2;

/** The page's data as typed columns. */
export function decode(data) {
  const relations = data.relations.map((relation, index) => ({ ...relation, index }));
  const length = relations.reduce((sum, relation) => sum + (relation.cells?.at.length ?? 0), 0);
  const rows = {
    length,
    cell: new Int32Array(length),
    relation: new Int32Array(length),
    hits: new Int32Array(length),
    suppressed: new Int32Array(length),
    added: new Float64Array(length),
    score: new Float64Array(length),
    suppression: new Float64Array(length),
    q: new Float64Array(length),
    suppressionQ: new Float64Array(length),
    control: new Float64Array(length),
    confirmed: new Uint8Array(length),
  };
  let next = 0;
  for (const relation of relations) {
    relation.first = next;
    if (relation.cells) next = decodeCells(rows, relation, data.n_heads, next);
    relation.last = next;
  }
  return {
    data,
    relations,
    scored: relations.filter((relation) => relation.cells),
    categories: data.categories,
    nLayers: data.n_layers,
    nHeads: data.n_heads,
    nCells: data.n_layers * data.n_heads,
    mapped: Uint8Array.from(data.layers_done),
    thresholds: data.thresholds,
    rows,
    rowsOfCell: indexByCell(rows, data.n_layers * data.n_heads),
  };
}

function decodeCells(rows, relation, nHeads, first) {
  const { at, hits, suppressed, added, q, suppression_q: suppressionQ } = relation.cells;
  const n = relation.n_sources;
  let cell = 0;
  for (let i = 0; i < at.length; i += 1) {
    const row = first + i;
    cell += at[i];
    rows.cell[row] = cell;
    rows.relation[row] = relation.index;
    rows.hits[row] = hits[i];
    rows.suppressed[row] = suppressed[i];
    rows.score[row] = hits[i] / n;
    rows.suppression[row] = suppressed[i] / n;
    rows.added[row] = added[i] / n;
    rows.q[row] = q[i] ?? NaN;
    rows.suppressionQ[row] = suppressionQ[i] ?? NaN;
    rows.confirmed[row] = relation.cells.confirmed?.[i] ?? 0;
    const control = relation.control[Math.floor(cell / nHeads)];
    rows.control[row] = control === null ? NaN : control / n;
  }
  return first + at.length;
}

/** Rows grouped by head: those of cell c are order[start[c]] … order[start[c + 1] - 1]. */
function indexByCell(rows, nCells) {
  const start = new Int32Array(nCells + 1);
  for (let row = 0; row < rows.length; row += 1) start[rows.cell[row] + 1] += 1;
  for (let cell = 0; cell < nCells; cell += 1) start[cell + 1] += start[cell];
  const place = start.slice(0, nCells);
  const order = new Int32Array(rows.length);
  for (let row = 0; row < rows.length; row += 1) {
    order[place[rows.cell[row]]] = row;
    place[rows.cell[row]] += 1;
  }
  return { start, order };
}

/** The rows of one head. */
export function rowsOfHead(atlas, cell) {
  const { start, order } = atlas.rowsOfCell;
  return Array.from(order.subarray(start[cell], start[cell + 1]));
}

/**
 * Who counts under a criterion.
 *
 * @param thresholds tau, and criterion: "tau" (score alone) or "calibrated" (score and q ≤ q_max).
 * @returns effect: per row, PROMOTES and SUPPRESSES bits; member: per category, one byte a head;
 *     level: per head, its number of categories; everything: whether every mapped head counts, hits or not.
 */
export function read(atlas, thresholds) {
  const { rows, relations, nCells } = atlas;
  const { tau, criterion, q_max: qMax } = thresholds;
  const alone = criterion === "tau";
  const effect = new Uint8Array(rows.length);
  const member = atlas.categories.map(() => new Uint8Array(nCells));
  for (let row = 0; row < rows.length; row += 1) {
    let bits = 0;
    if (rows.score[row] >= tau && (alone || rows.q[row] <= qMax)) bits |= PROMOTES;
    if (rows.suppression[row] >= tau && (alone || rows.suppressionQ[row] <= qMax)) bits |= SUPPRESSES;
    effect[row] = bits;
    if (bits) member[relations[rows.relation[row]].category][rows.cell[row]] = 1;
  }
  // Rows without a hit are not listed: score 0, q 1. They count only where everything does.
  const everything = tau <= 0 && (alone || qMax >= 1);
  if (everything) {
    for (const relation of atlas.scored) markMapped(atlas, member[relation.category]);
  }
  const level = new Uint8Array(nCells);
  for (const heads of member) {
    for (let cell = 0; cell < nCells; cell += 1) level[cell] += heads[cell];
  }
  return { thresholds, effect, member, level, everything };
}

function markMapped(atlas, heads) {
  for (let cell = 0; cell < atlas.nCells; cell += 1) {
    if (atlas.mapped[Math.floor(cell / atlas.nHeads)]) heads[cell] = 1;
  }
}

/** The heads that count for one of the chosen relations: one byte a head; null means all that count. */
export function headsOf(atlas, reading, chosen) {
  if (chosen === null) return null;
  const heads = new Uint8Array(atlas.nCells);
  for (const relation of atlas.scored) {
    if (!chosen.has(relation.index)) continue;
    for (let row = relation.first; row < relation.last; row += 1) {
      if (reading.effect[row]) heads[atlas.rows.cell[row]] = 1;
    }
    if (reading.everything) markMapped(atlas, heads);
  }
  return heads;
}

/** How many heads each panel shows, per level: panels[0] is all categories, levels[0] is level 1. */
export function countHeads(atlas, reading, only = null) {
  const panels = [null, ...reading.member].map((heads) => {
    const levels = new Array(atlas.categories.length).fill(0);
    for (let cell = 0; cell < atlas.nCells; cell += 1) {
      const shown = reading.level[cell] && (!heads || heads[cell]) && (!only || only[cell]);
      if (shown) levels[reading.level[cell] - 1] += 1;
    }
    return levels;
  });
  return panels.map((levels) => ({ levels, total: levels.reduce((sum, n) => sum + n, 0) }));
}

/** "23.4": layer 23, head 4. */
export function headName(atlas, cell) {
  return `${Math.floor(cell / atlas.nHeads)}.${cell % atlas.nHeads}`;
}

/** What evidence was asked for (bits 1 and 2), and what it confirms at the atlas's own criterion (4 and 8). */
const EVIDENCE = [
  [1, 4, "with context"],
  [2, 8, "by ablation"],
];

/** "with context, not by ablation", or a dash where no evidence was asked for. */
export function confirmedName(bits) {
  const parts = EVIDENCE.filter(([asked]) => bits & asked);
  return parts.map(([, yes, words]) => (bits & yes ? words : `not ${words}`)).join(", ") || "–";
}

/** The same without what was asked and not confirmed: "with context", or nothing. */
export function confirmedOnly(bits) {
  const parts = EVIDENCE.filter(([, yes]) => bits & yes);
  return parts.map(([, , words]) => words).join(", ");
}

/** "promotes", "suppresses", both, or nothing. */
export function effectName(bits) {
  return ["–", "promotes", "suppresses", "promotes, suppresses"][bits];
}

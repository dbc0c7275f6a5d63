/**
 * Reading the atlas: hits at any k, q where it was calibrated, and which heads count under which criterion. Pure
 * functions, no document.
 *
 * A head is named by its cell, layer * nHeads + head. A row is one head × relation with a rank below the ceiling;
 * the columns of all rows are typed arrays of equal length, relation after relation.
 */

import { starts, sums, unfixed } from "./unpack.mjs";

export const PROMOTES = 1;
export const SUPPRESSES = 2;
/** Which effects are asked for, as bits. */
export const SIGNS = { both: PROMOTES | SUPPRESSES, promotion: PROMOTES, suppression: SUPPRESSES };

const BEYOND = 255;

/**
 * The page's data with its unpacked ranks.
 *
 * @param {PageData} data
 * @param {any} ranks section
 */
export function decode(data, ranks) {
  const relations = data.relations.map((relation, index) => ({ ...relation, index }));
  const scored = relations.filter((relation) => !relation.left_out);
  const nCells = data.n_layers * data.n_heads;
  const atlas = {
    data,
    relations,
    scored,
    categories: data.categories,
    nLayers: data.n_layers,
    nHeads: data.n_heads,
    nCells,
    mapped: Uint8Array.from(data.layers_done),
    nMapped: data.layers_done.reduce((sum, done) => sum + done, 0) * data.n_heads,
    thresholds: data.thresholds,
    ceiling: data.ceiling,
    /** How many times an atlas is compared head by head with the one before it. */
    nSteps: data.comparison?.steps.length ?? 0,
    rows: decodeRows(scored, ranks),
    calibrated: decodeCalibration(ranks),
    evidence: decodeEvidence(ranks),
  };
  decodeSources(scored, ranks);
  decodeControl(atlas, ranks);
  atlas.ranks = {};
  atlas.best = {};
  for (const sign of ["promotion", "suppression"]) {
    atlas.ranks[sign] = decodeRanks(ranks, sign);
    atlas.best[sign] = bestOfSources(atlas, atlas.ranks[sign]);
  }
  atlas.rowsOfCell = indexByCell(atlas.rows, nCells);
  return atlas;
}

function decodeRows(scored, ranks) {
  const length = ranks.row_cell.length;
  const cell = new Uint32Array(length);
  const relation = new Uint16Array(length);
  let row = 0;
  scored.forEach((each, at) => {
    each.first = row;
    let here = 0;
    for (; row < each.first + ranks.rows[at]; row += 1) {
      here += ranks.row_cell[row];
      cell[row] = here;
      relation[row] = each.index;
    }
    each.last = row;
  });
  return { length, cell, relation, confirmed: ranks.confirmed ?? new Uint8Array(length) };
}

/** Per relation: the source of each usable pair, and the first pair of each source. */
function decodeSources(scored, ranks) {
  const first = starts(ranks.pairs);
  scored.forEach((relation, at) => {
    relation.source = ranks.pair_source.slice(first[at], first[at + 1]);
  });
}

/** Ranks of rows: those of row r are rank[start[r]] … rank[start[r + 1] - 1], of the pairs beside them. */
function decodeRanks(ranks, sign) {
  const start = starts(ranks[`row_${sign}`]);
  const steps = ranks[`${sign}_pair`];
  const pair = new Uint16Array(steps.length);
  for (let row = 0; row + 1 < start.length; row += 1) {
    let here = 0;
    for (let i = start[row]; i < start[row + 1]; i += 1) pair[i] = here += steps[i];
  }
  return { start, pair, rank: ranks[`${sign}_rank`] };
}

/** The best rank among the targets of each source, for heads; and of the state itself beside it. */
function bestOfSources(atlas, { start, pair, rank }) {
  const { rows, relations, nHeads } = atlas;
  const first = new Uint32Array(start.length);
  const out = new Uint8Array(rank.length);
  const control = new Uint8Array(rank.length);
  let length = 0;
  for (let row = 0; row < rows.length; row += 1) {
    first[row] = length;
    const relation = relations[rows.relation[row]];
    const state = relation.control.best.subarray(Math.floor(rows.cell[row] / nHeads) * relation.n_sources);
    let last = -1;
    for (let i = start[row]; i < start[row + 1]; i += 1) {
      const source = relation.source[pair[i]];
      if (source === last) out[length - 1] = Math.min(out[length - 1], rank[i]);
      else {
        out[length] = rank[i];
        control[length] = state[source];
        length += 1;
        last = source;
      }
    }
  }
  first[rows.length] = length;
  return { start: first, rank: out.slice(0, length), control: control.slice(0, length) };
}

/** Per relation, the best rank of the state itself for each layer and source: best[layer * n_sources + source]. */
function decodeControl(atlas, ranks) {
  const first = starts(ranks.control);
  atlas.scored.forEach((relation, at) => {
    const best = new Uint8Array(atlas.nLayers * relation.n_sources).fill(BEYOND);
    for (let layer = 0; layer < atlas.nLayers; layer += 1) {
      const run = at * atlas.nLayers + layer;
      let pair = 0;
      for (let i = first[run]; i < first[run + 1]; i += 1) {
        pair += ranks.control_pair[i];
        const place = layer * relation.n_sources + relation.source[pair];
        best[place] = Math.min(best[place], ranks.control_rank[i]);
      }
    }
    relation.control = { best };
  });
}

/** p below 1 by relation kind, k and sign: calibrated.plain.get(10).promotion = {row, value}. */
function decodeCalibration(ranks) {
  const out = { plain: new Map(), copying: new Map() };
  for (const name of Object.keys(ranks)) {
    const [head, kind, k, sign, part] = name.split("/");
    if (head !== "p" || part !== "row") continue;
    if (!out[kind].has(Number(k))) out[kind].set(Number(k), {});
    out[kind].get(Number(k))[sign] = { row: sums(ranks[name]), value: ranks[`p/${kind}/${k}/${sign}/value`] };
  }
  return out;
}

function decodeEvidence(ranks) {
  const names = Object.keys(ranks).filter((name) => name.startsWith("evidence/"));
  return Object.fromEntries(names.map((name) => [name.slice("evidence/".length), unfixed(ranks[name])]));
}

/** Rows grouped by head: those of cell c are order[start[c]] … order[start[c + 1] - 1]. */
function indexByCell(rows, nCells) {
  const counts = new Uint32Array(nCells);
  for (let row = 0; row < rows.length; row += 1) counts[rows.cell[row]] += 1;
  const start = starts(counts);
  const place = start.slice(0, nCells);
  const order = new Uint32Array(rows.length);
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

// Scores ----------------------------------------------------------------------------------------------

/**
 * Scores of all rows at a k, as headatlas.atlas.relation_scores computes them.
 *
 * @param {number} k of all relations but copying; kCopy that of copying relations.
 * @returns hits, suppressed, added: sources per row; score, suppression: shares; q, suppressionQ: NaN unless
 *     qKnown; control: share of sources of the state itself, per row.
 */
export function scoresAt(atlas, k, kCopy) {
  const { rows, relations, nHeads } = atlas;
  const { length } = rows;
  const out = { k, kCopy, hits: new Uint16Array(length), suppressed: new Uint16Array(length) };
  out.added = new Uint16Array(length);
  for (const name of ["score", "suppression", "addedShare", "control"]) out[name] = new Float64Array(length);
  const { promotion, suppression } = atlas.best;
  for (const relation of atlas.scored) {
    const mine = relation.copying ? kCopy : k;
    const n = relation.n_sources;
    const control = controlHits(atlas, relation, mine);
    for (let row = relation.first; row < relation.last; row += 1) {
      for (let i = promotion.start[row]; i < promotion.start[row + 1]; i += 1) {
        if (promotion.rank[i] >= mine) continue;
        out.hits[row] += 1;
        if (promotion.control[i] >= mine) out.added[row] += 1;
      }
      for (let i = suppression.start[row]; i < suppression.start[row + 1]; i += 1) {
        if (suppression.rank[i] < mine) out.suppressed[row] += 1;
      }
      out.score[row] = out.hits[row] / n;
      out.suppression[row] = out.suppressed[row] / n;
      out.addedShare[row] = out.added[row] / n;
      out.control[row] = control[Math.floor(rows.cell[row] / nHeads)] / n;
    }
  }
  return {
    ...out,
    ...falseDiscoveryRates(atlas, k, kCopy),
    kOf: (row) => (relations[rows.relation[row]].copying ? kCopy : k),
  };
}

/** Sources that the state itself hits, by layer. */
export function controlHits(atlas, relation, k) {
  const hits = new Uint16Array(atlas.nLayers);
  const { best } = relation.control;
  for (let i = 0; i < best.length; i += 1) if (best[i] < k) hits[Math.floor(i / relation.n_sources)] += 1;
  return hits;
}

/** p at a k, of the relations that copy and of the others; null where heads were not calibrated at it. */
export function calibrationAt(atlas, k, kCopy) {
  const parts = [];
  if (atlas.scored.some((relation) => !relation.copying)) parts.push(atlas.calibrated.plain.get(k));
  if (atlas.scored.some((relation) => relation.copying)) parts.push(atlas.calibrated.copying.get(kCopy));
  return parts.includes(undefined) ? null : parts;
}

/** Benjamini–Hochberg over all heads, relations and both signs, as headatlas.scoring does it. */
function falseDiscoveryRates(atlas, k, kCopy) {
  const { length } = atlas.rows;
  const parts = calibrationAt(atlas, k, kCopy);
  const qKnown = parts !== null;
  const q = new Float64Array(length).fill(qKnown ? 1 : NaN);
  const suppressionQ = q.slice();
  if (!qKnown) return { qKnown, q, suppressionQ };
  const found = [];
  for (const part of parts) {
    for (const [sign, column] of Object.entries({ promotion: q, suppression: suppressionQ })) {
      part[sign].row.forEach((row, i) => found.push({ p: part[sign].value[i], row, column }));
    }
  }
  found.sort((a, b) => a.p - b.p);
  const tests = 2 * atlas.scored.length * atlas.nMapped;
  let least = 1;
  for (let i = found.length - 1; i >= 0; i -= 1) {
    least = Math.min(least, found[i].p * (tests / (i + 1)));
    found[i].column[found[i].row] = least;
  }
  return { qKnown, q, suppressionQ };
}

// Reading ---------------------------------------------------------------------------------------------

/**
 * Who counts under a criterion.
 *
 * @param scores those of scoresAt.
 * @param thresholds tau, q_max and criterion: "tau" (score alone) or "calibrated" (score and q ≤ q_max; score alone
 *     where q is not known at this k); sign: "both", "promotion" or "suppression".
 * @returns effect: per row, PROMOTES and SUPPRESSES bits; member: per category, one byte a head; level: per head,
 *     its number of categories; everything: whether every mapped head counts, hits or not; alone: by score alone;
 *     tested: level of what is held to q as well, 0 where q is not known.
 */
export function read(atlas, scores, thresholds) {
  const { rows, relations, nCells } = atlas;
  const { tau, criterion, q_max: qMax } = thresholds;
  const alone = criterion === "tau" || !scores.qKnown;
  const asked = SIGNS[thresholds.sign ?? "both"];
  const effect = new Uint8Array(rows.length);
  const member = atlas.categories.map(() => new Uint8Array(nCells));
  for (let row = 0; row < rows.length; row += 1) {
    let bits = 0;
    if (scores.score[row] >= tau && (alone || scores.q[row] <= qMax)) bits |= PROMOTES;
    if (scores.suppression[row] >= tau && (alone || scores.suppressionQ[row] <= qMax)) bits |= SUPPRESSES;
    effect[row] = bits & asked;
    if (effect[row]) member[relations[rows.relation[row]].category][rows.cell[row]] = 1;
  }
  // Rows without a rank are not listed: score 0, q 1. They count only where everything does.
  const everything = tau <= 0 && (alone || qMax >= 1);
  if (everything) {
    for (const relation of atlas.scored) markMapped(atlas, member[relation.category]);
  }
  const level = new Uint8Array(nCells);
  for (const heads of member) {
    for (let cell = 0; cell < nCells; cell += 1) level[cell] += heads[cell];
  }
  let tested = level;
  if (!scores.qKnown) tested = new Uint8Array(nCells);
  else if (alone) tested = read(atlas, scores, { ...thresholds, criterion: "calibrated" }).level;
  return { thresholds, scores, effect, member, level, everything, alone, tested };
}

function markMapped(atlas, heads) {
  for (let cell = 0; cell < atlas.nCells; cell += 1) {
    if (isMapped(atlas, cell)) heads[cell] = 1;
  }
}

/** Whether the layer of a head has been mapped. */
export function isMapped(atlas, cell) {
  return atlas.mapped[Math.floor(cell / atlas.nHeads)] === 1;
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

/** Whether a row is about suppression: the effect that counts, or the stronger one that was asked for. */
export function isSuppression(reading, row) {
  const bits = reading.effect[row];
  if (bits === PROMOTES || bits === SUPPRESSES) return bits === SUPPRESSES;
  const asked = SIGNS[reading.thresholds.sign ?? "both"];
  if (asked !== SIGNS.both) return asked === SUPPRESSES;
  return reading.scores.suppression[row] > reading.scores.score[row];
}

/** The larger of score and suppression, of the effects asked for. */
export function strength(reading, row) {
  const asked = SIGNS[reading.thresholds.sign ?? "both"];
  const { score, suppression } = reading.scores;
  return Math.max(asked & PROMOTES ? score[row] : 0, asked & SUPPRESSES ? suppression[row] : 0);
}

// Names -----------------------------------------------------------------------------------------------

/** "23.4": layer 23, head 4. */
export function headName(atlas, cell) {
  return `${Math.floor(cell / atlas.nHeads)}.${cell % atlas.nHeads}`;
}

/** The head that a text names (23.4, L23H4, l23.h4); null if it names none of this model. */
export function headNamed(atlas, text) {
  const found = /^\s*l?(\d+)\s*[.h]h?(\d+)\s*$/i.exec(text);
  if (!found) return null;
  const [layer, head] = [Number(found[1]), Number(found[2])];
  return layer < atlas.nLayers && head < atlas.nHeads ? layer * atlas.nHeads + head : null;
}

/**
 * What evidence was asked for (bits 1 and 2), and what it confirms at the atlas's own criterion (4 and 8).
 *
 * @type {[number, number, string][]}
 */
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

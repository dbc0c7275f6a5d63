/** The words behind the ranks: pairs that a head hits and misses, salient tokens, and searching all of it. Pure. */

import { confirmedName, effectName, headNamed } from "./atlas.mjs";
import { spoken } from "./measures.mjs";
import { unfixed } from "./unpack.mjs";

const NO_TOKEN = 2 ** 32 - 1;
/** Above every rank that is stored. */
const BEYOND = 1000;

/** Give the relations their words: sources, and the target of each usable pair. */
export function decodeWords(atlas, section) {
  atlas.scored.forEach((relation, at) => {
    [relation.sources, relation.targets] = section.json[at];
  });
}

/** What heads write, by their salience section. */
export function decodeSalience(section, nCells) {
  const { texts, sizes, explained } = section.json;
  const gain = unfixed(section.gain, 3);
  const values = unfixed(section.singular_values, 3);
  const named = (name, from, to) =>
    Array.from(section[name].subarray(from, to))
      .filter((id) => id !== NO_TOKEN)
      .map((id) => texts[id]);
  const [nSources] = sizes.source;
  const [, nTargets] = sizes.promoted;
  const [nDirections, nEnds, nPlaces] = sizes.reads;
  const nValues = sizes.singular_values[0];
  const tokens = (name, cell, direction, end) => {
    const first = ((cell * nDirections + direction) * nEnds + end) * nPlaces;
    return named(name, first, first + nPlaces);
  };
  return {
    nCells,
    /** Source tokens of a head, the largest gain first. */
    operations(cell) {
      const out = [];
      for (let i = cell * nSources; i < (cell + 1) * nSources; i += 1) {
        const [source] = named("source", i, i + 1);
        if (source === undefined) continue;
        const [from, to] = [i * nTargets, (i + 1) * nTargets];
        out.push({
          source,
          gain: gain[i],
          promoted: named("promoted", from, to),
          suppressed: named("suppressed", from, to),
        });
      }
      return out;
    },
    /** Directions of a head; each end reads some tokens, and promotes and suppresses others for them. */
    directions(cell) {
      const out = [];
      for (let direction = 0; direction < nDirections; direction += 1) {
        const ends = [0, 1].map((end) => ({
          reads: tokens("reads", cell, direction, end),
          promoted: tokens("writes", cell, direction, end),
          suppressed: tokens("writes", cell, direction, 1 - end),
        }));
        if (ends.some((end) => end.reads.length || end.promoted.length))
          out.push({ value: values[cell * nValues + direction], ends });
      }
      return out;
    },
    values: (cell) =>
      Array.from(values.subarray(cell * nValues, (cell + 1) * nValues)).filter(
        (value) => !Number.isNaN(value),
      ),
    explained: (cell) => explained[cell],
    /** Cells whose source tokens or promoted tokens hold a text. */
    heads(text) {
      const wanted = new Set();
      texts.forEach((each, id) => {
        if (each.toLowerCase().includes(text)) wanted.add(id);
      });
      const found = new Map();
      const look = (name, size, word) =>
        section[name].forEach((id, at) => {
          if (!wanted.has(id)) return;
          const cell = Math.floor(at / size);
          if (!found.has(cell)) found.set(cell, { cell, how: word, token: texts[id] });
        });
      look("source", nSources, "reads");
      look("promoted", nSources * nTargets, "promotes");
      return [...found.values()].sort((a, b) => a.cell - b.cell);
    },
  };
}

/**
 * The pairs of a row, a source and one of its targets each: {source, target, rank (null at the ceiling and beyond),
 * hit, sourceHit, controlHit}; sources with the best ranks first.
 */
export function pairsOf(atlas, scores, row, sign) {
  const relation = atlas.relations[atlas.rows.relation[row]];
  const k = relation.copying ? scores.kCopy : scores.k;
  const { start, pair, rank } = atlas.ranks[sign];
  const ranks = new Map();
  for (let i = start[row]; i < start[row + 1]; i += 1) ranks.set(pair[i], rank[i]);
  const layer = Math.floor(atlas.rows.cell[row] / atlas.nHeads);
  const best = new Array(relation.n_sources).fill(Infinity);
  const pairs = relation.targets.map((target, at) => {
    const own = ranks.get(at) ?? null;
    const source = relation.source[at];
    if (own !== null) best[source] = Math.min(best[source], own);
    const controlHit = relation.control.best[layer * relation.n_sources + source] < k;
    return {
      at: source,
      source: relation.sources[source],
      target,
      rank: own,
      hit: own !== null && own < k,
      controlHit,
    };
  });
  const far = (rank) => (rank === null || rank === Infinity ? BEYOND : rank);
  return pairs
    .map((each) => ({ ...each, sourceHit: best[each.at] < k }))
    .sort((a, b) => far(best[a.at]) - far(best[b.at]) || a.at - b.at || far(a.rank) - far(b.rank));
}

// Searching -------------------------------------------------------------------------------------------

/** The words of a search, lower case. */
export function wordsOf(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean);
}

/**
 * Which rows a word means: a head (23.4, L23H4), a layer (23, L23), or text in the relation, the category, the effect,
 * a label, or a pair that the head hits.
 *
 * @returns (row) => boolean.
 */
export function rowTest(context, word) {
  const { atlas, heads, reading } = context;
  const { rows, relations, nHeads } = atlas;
  const cell = headNamed(atlas, word);
  if (cell !== null) return (row) => rows.cell[row] === cell;
  const layer = /^l?(\d+)\.?$/.exec(word);
  if (layer) return (row) => Math.floor(rows.cell[row] / nHeads) === Number(layer[1]);
  const about = relations.map((relation) =>
    `${relation.title} ${relation.name} ${atlas.categories[relation.category]}`.toLowerCase().includes(word),
  );
  const labelled = new Set();
  for (const [head, labels] of heads.labelsOf) {
    if (labels.some((each) => each.label.toLowerCase().includes(word))) labelled.add(head);
  }
  const pairs = relations.map((relation) => pairsWith(relation, word));
  return (row) => {
    const at = rows.relation[row];
    if (about[at] || labelled.has(rows.cell[row])) return true;
    if (reading.effect[row] && effectName(reading.effect[row]).includes(word)) return true;
    if (rows.confirmed[row] && confirmedName(rows.confirmed[row]).includes(word)) return true;
    return pairs[at].size > 0 && hitsAny(context, row, pairs[at]);
  };
}

/** Positions of a relation's pairs whose source or target holds a word. */
function pairsWith(relation, word) {
  const found = new Set();
  if (!relation.targets) return found;
  relation.targets.forEach((target, at) => {
    const source = relation.sources[relation.source[at]];
    if (target.toLowerCase().includes(word) || source.toLowerCase().includes(word)) found.add(at);
  });
  return found;
}

function hitsAny({ atlas, reading }, row, wanted) {
  const relation = atlas.relations[atlas.rows.relation[row]];
  const k = relation.copying ? reading.scores.kCopy : reading.scores.k;
  return ["promotion", "suppression"].some((sign) => {
    const { start, pair, rank } = atlas.ranks[sign];
    for (let i = start[row]; i < start[row + 1]; i += 1) if (rank[i] < k && wanted.has(pair[i])) return true;
    return false;
  });
}

/**
 * What a text finds, besides rows of the table: heads by name, relations, pairs of words, behaviours, labels, tokens.
 *
 * @param context atlas, heads, reading, salience (null if not there).
 * @returns {{heads: number[], relations: any[], pairs: any[], behaviours: any[], labels: any[], tokens: any[]}}
 */
export function search(context, text) {
  const { atlas, heads, salience } = context;
  const wanted = text.trim().toLowerCase();
  const empty = { heads: [], relations: [], pairs: [], behaviours: [], labels: [], tokens: [] };
  if (!wanted) return empty;
  const cell = headNamed(atlas, wanted);
  if (cell !== null) return { ...empty, heads: [cell] };
  const layer = /^l?(\d+)\.?$/.exec(wanted);
  if (layer && Number(layer[1]) < atlas.nLayers) {
    const first = Number(layer[1]) * atlas.nHeads;
    return { ...empty, heads: Array.from({ length: atlas.nHeads }, (_, head) => first + head) };
  }
  const relations = atlas.scored.filter((relation) =>
    wordsOf(wanted).every((word) => `${relation.title} ${relation.name}`.toLowerCase().includes(word)),
  );
  const labels = [...heads.labelsOf].flatMap(([head, own]) =>
    own.filter((each) => each.label.toLowerCase().includes(wanted)).map((each) => ({ cell: head, ...each })),
  );
  return {
    heads: [],
    relations,
    pairs: atlas.scored.flatMap((relation) => foundPairs(context, relation, wanted)),
    behaviours: heads.behaviours.filter(
      (each) => spoken(each.name).includes(wanted) || each.name.includes(wanted),
    ),
    labels,
    tokens: salience && wanted.length > 1 ? salience.heads(wanted) : [],
  };
}

/** Pairs of a relation with a text, and how many heads hit each, at this k. */
function foundPairs({ atlas, reading }, relation, wanted) {
  const found = pairsWith(relation, wanted);
  if (!found.size) return [];
  /** @type {Map<number, {cell: number, rank: number}[]>} */
  const hits = new Map([...found].map((at) => [at, []]));
  const k = relation.copying ? reading.scores.kCopy : reading.scores.k;
  const { start, pair, rank } = atlas.ranks.promotion;
  for (let row = relation.first; row < relation.last; row += 1) {
    for (let i = start[row]; i < start[row + 1]; i += 1) {
      if (rank[i] < k) hits.get(pair[i])?.push({ cell: atlas.rows.cell[row], rank: rank[i] });
    }
  }
  return [...hits].map(([at, heads]) => ({
    relation,
    source: relation.sources[relation.source[at]],
    target: relation.targets[at],
    heads: heads.sort((a, b) => a.rank - b.rank || a.cell - b.cell),
  }));
}

/** What the page's own modules make of its data, as JSON: node check.mjs MODULES DATA. */

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, file] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${folder}/${name}.mjs`).href);
const { controlHits, countHeads, decode, headName, headNamed, headsOf, read, rowsOfHead, scoresAt } =
  await load("atlas");
const { coverage, decodeHeads, measuresOf, profile, similarHeads, strongest } = await load("measures");
const { chosenRelations, colouredBy, formatFragment, initialState, parseFragment } = await load("state");
const { decodeSalience, decodeWords, pairsOf, search } = await load("words");
const { filterRows, sortRows, toCsv } = await load("rows");
const { paint, STEPS } = await load("colours");
const { arrange, roundTicks, ticks } = await load("layout");
const { unpack } = await load("unpack");
const { wilson } = await load("format");

const { data, taus, ks, fragments, heads: asked, searches } = JSON.parse(readFileSync(file, "utf8"));
const atlas = decode(data, await unpack(data.packed.ranks));
decodeWords(atlas, await unpack(data.packed.words));
const heads = decodeHeads(await unpack(data.packed.heads), atlas.nCells);
const salience = data.packed.salience && decodeSalience(await unpack(data.packed.salience), atlas.nCells);

const relationOf = (row) => atlas.relations[atlas.rows.relation[row]];
const name = (row) => [
  Math.floor(atlas.rows.cell[row] / atlas.nHeads),
  atlas.rows.cell[row] % atlas.nHeads,
  relationOf(row).name,
];
const numbers = (values) => Array.from(values, (value) => (Number.isNaN(value) ? null : value));

/** Every row's numbers at a k, and the control of every layer. */
function scored([k, kCopy]) {
  const scores = scoresAt(atlas, k, kCopy);
  const columns = {
    score: "score",
    suppression: "suppression",
    added: "addedShare",
    control: "control",
    q: "q",
    suppression_q: "suppressionQ",
  };
  const table = Array.from({ length: atlas.rows.length }, (_, row) => name(row));
  const found = Object.entries(columns).map(([column, own]) => [column, numbers(scores[own])]);
  const control = atlas.scored.map((each) => Array.from(controlHits(atlas, each, each.copying ? kCopy : k)));
  return { k, kCopy, table, stateHits: control, known: scores.qKnown, ...Object.fromEntries(found) };
}

const { k, k_copy: kCopy } = atlas.thresholds;
const scores = scoresAt(atlas, k, kCopy);
const readings = taus.flatMap((tau) =>
  ["tau", "calibrated"].map((criterion) => {
    const reading = read(atlas, scores, { ...atlas.thresholds, tau, criterion });
    const member = reading.member.map((cells) => Array.from(cells));
    return { tau, criterion, level: Array.from(reading.level), member, counts: countHeads(atlas, reading) };
  }),
);
const reading = read(atlas, scores, atlas.thresholds);
const signs = ["both", "promotion", "suppression"].map((sign) => {
  const { effect } = read(atlas, scores, { ...atlas.thresholds, sign });
  return [sign, Array.from(effect).flatMap((bits, row) => (bits ? [[...name(row), bits]] : []))];
});
const context = { atlas, heads, reading, chosen: null, salience };
const filter = { text: "", below: false };
const best = filterRows(context, sortRows(atlas, reading, "best", true), filter);
const find = (part, chosen = null) =>
  filterRows({ ...context, chosen }, sortRows(atlas, reading, "head", false), { ...filter, ...part }).map(
    name,
  );
const one = atlas.scored[Math.min(3, atlas.scored.length - 1)].index;
const alone = { ...context, chosen: new Set([one]) };

const cards = (asked ?? []).map((text) => {
  const cell = headNamed(atlas, text);
  const rows = rowsOfHead(atlas, cell);
  const pairs = rows.flatMap((row) =>
    ["promotion", "suppression"].map((sign) => [
      relationOf(row).name,
      sign,
      pairsOf(atlas, scores, row, sign),
    ]),
  );
  const written = salience && {
    operations: salience.operations(cell),
    directions: salience.directions(cell),
    explained: salience.explained(cell),
  };
  const labels = heads.labelsOf.get(cell) ?? [];
  const looks = heads.behaviours.map((each) => [
    each.name,
    each.value[cell],
    each.expected[cell],
    each.q[cell],
    each.called[cell],
  ]);
  const similar = similarHeads(context, cell).map((each) => [headName(atlas, each.cell), each.similarity]);
  return { head: text, pairs, similar, looks, labels, written };
});

console.log(
  JSON.stringify({
    scored: (ks ?? []).map(scored),
    readings,
    signs: Object.fromEntries(signs),
    best: best.map(name),
    csv: toCsv(context, best),
    capital: find({ text: "Knowledge capital" }),
    headByName: find({ text: "2.1", below: true }),
    headByLongName: find({ text: "L2H1", below: true }),
    layer: find({ text: "2", below: true }),
    suppresses: find({ text: "suppresses" }),
    headRows: rowsOfHead(atlas, 9).map(name),
    relation: find({}, new Set([one])),
    relationHeads: Array.from(headsOf(atlas, reading, new Set([one]))),
    relationName: atlas.relations[one].name,
    coverage: coverage(context),
    coverageByScore: [k, 7].map((each) => {
      const byTau = { ...atlas.thresholds, q_max: 1e-16, criterion: "tau" };
      const byScore = read(atlas, scoresAt(atlas, each, kCopy), byTau);
      return coverage({ ...context, reading: byScore }).any;
    }),
    strongest: numbers(strongest(alone).value),
    bestOfLayers: [numbers(profile(context).best), numbers(profile(context).control)],
    profile: profile(alone).counts.map((each) => Array.from(each)),
    measures: Object.fromEntries(
      measuresOf(atlas, heads).map((each) => [each.name, numbers(each.values(context))]),
    ),
    painted: ["categories", "score", "layer", "nonsense"].map(
      (by) => paint(context, by, measuresOf(atlas, heads)).classOf,
    ),
    steps: STEPS,
    cards,
    searches: (searches ?? []).map((text) => {
      const found = search(context, text);
      return {
        ...found,
        heads: found.heads.map((cell) => headName(atlas, cell)),
        relations: found.relations.map((relation) => relation.name),
        pairs: found.pairs.map((each) => ({
          ...each,
          relation: each.relation.name,
          heads: each.heads.map(({ cell }) => headName(atlas, cell)),
        })),
        behaviours: found.behaviours.map((each) => each.name),
      };
    }),
    words: (searches ?? []).map((text) => find({ text })),
    fragments: (fragments ?? []).map((text) => {
      const state = parseFragment(atlas, text);
      const chosen = chosenRelations(atlas, state);
      return {
        state,
        written: formatFragment(atlas, state),
        again: parseFragment(atlas, formatFragment(atlas, state)),
        chosen: chosen && [...chosen],
        colour: colouredBy(state),
      };
    }),
    opening: formatFragment(atlas, initialState(atlas)),
    wilson: [wilson(0, 40), wilson(13, 40), wilson(40, 40)],
    ends: Array.from({ length: 500 }, (_, n) => [wilson(0, n + 1)[0], wilson(n + 1, n + 1)[1]]),
    plans: [
      [1232, 1, 30, 9, 1],
      [850, 1, 80, 64, 1],
      [388, 3, 80, 64, 1],
      [388, 2, 30, 9, 3],
      [1232, 1, 32, 32, 1],
    ].map(([width, ratio, layers, nHeads, zoom]) => ({
      layers,
      ratio,
      width,
      zoom,
      ...arrange(width, ratio, layers, nHeads, 4, zoom),
    })),
    ticks: [ticks(30, 7, 26), ticks(80, 4, 26), ticks(9, 7, 18), ticks(3, 20, 26), ticks(1, 20, 26)],
    roundTicks: [roundTicks(0, 1), roundTicks(0, 29), roundTicks(-0.4, 0.41), roundTicks(0, 0)],
  }),
);

/** What the page's own modules make of its data, as JSON: node check.mjs MODULES DATA. */

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, file] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${folder}/${name}.mjs`).href);
const { countHeads, decode, headsOf, read, rowsOfHead } = await load("atlas");
const { filterRows, sortRows, toCsv } = await load("rows");
const { wilson } = await load("format");
const { arrange, ticks } = await load("layout");

const { data, taus } = JSON.parse(readFileSync(file, "utf8"));
const atlas = decode(data);
const readings = taus.flatMap((tau) =>
  ["tau", "calibrated"].map((criterion) => {
    const reading = read(atlas, { ...atlas.thresholds, tau, criterion });
    const member = reading.member.map((heads) => Array.from(heads));
    return { tau, criterion, level: Array.from(reading.level), member, counts: countHeads(atlas, reading) };
  }),
);
const reading = read(atlas, atlas.thresholds);
const filter = { chosen: null, cell: null, text: "", below: false };
const best = filterRows(atlas, reading, sortRows(atlas, "best", true), filter);
const name = (row) => [
  Math.floor(atlas.rows.cell[row] / atlas.nHeads),
  atlas.rows.cell[row] % atlas.nHeads,
  atlas.relations[atlas.rows.relation[row]].name,
];
const find = (part) =>
  filterRows(atlas, reading, sortRows(atlas, "layer", false), { ...filter, ...part }).map(name);
const one = atlas.scored[3].index;

console.log(
  JSON.stringify({
    readings,
    best: best.map(name),
    csv: toCsv(atlas, reading, best),
    capital: find({ text: "Knowledge capital" }),
    head: find({ cell: 9, below: true }),
    headByName: find({ text: "2.1", below: true }),
    headRows: rowsOfHead(atlas, 9).map(name),
    relation: find({ chosen: new Set([one]) }),
    relationHeads: Array.from(headsOf(atlas, reading, new Set([one]))),
    relationName: atlas.relations[one].name,
    wilson: [wilson(0, 40), wilson(13, 40), wilson(40, 40)],
    ends: Array.from({ length: 500 }, (_, n) => [wilson(0, n + 1)[0], wilson(n + 1, n + 1)[1]]),
    plans: [
      [1232, 1, 30, 9],
      [1232, 1, 80, 64],
      [358, 3, 80, 64],
      [358, 2, 30, 9],
      [1232, 1, 32, 32],
    ].map(([width, ratio, layers, heads]) => ({
      layers,
      ratio,
      width,
      ...arrange(width, ratio, layers, heads, 5),
    })),
    ticks: [ticks(30, 7, 26), ticks(80, 4, 26), ticks(3, 20, 26), ticks(1, 20, 26)],
  }),
);

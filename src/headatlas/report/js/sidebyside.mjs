/** The same relations in several atlases: best scores, how deep, how many heads, and how far the models agree. */

import { el, headButton, hint, relationButton, svg } from "./dom.mjs";
import { count, share } from "./format.mjs";

const PLOT = { width: 170, row: 10, pad: 7 };
/** Atlases are told apart by shape as well as by colour; a path around 0, 0. */
const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
  "M-3.6 -3.6h7.2v7.2h-7.2z",
  "M0 -4.6L4.4 3.4H-4.4z",
  "M0 -5L5 0L0 5L-5 0z",
  "M0 4.6L4.4 -3.4H-4.4z",
  "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
];

/**
 * Build the section; null where nothing is compared.
 *
 * @param handlers open(cell, how), choose(relation index).
 * @returns node.
 */
export function createSideBySide(atlas, comparison, handlers) {
  if (!comparison) return null;
  const { data, relations } = comparison;
  const { labels } = data;
  const headings = [
    ["Relation", "words"],
    ["Best score, 0 to 1", "whole"],
    ["Depth of that head", "whole"],
    ...labels.map((label) => [label, "words"]),
  ];
  const rows = relations.map((relation) => {
    return el(
      "tr",
      {},
      el(
        "th",
        { class: "words", scope: "row" },
        relation.index >= 0 ? relationButton(relation, handlers) : relation.title,
      ),
      el("td", { class: "whole" }, plotOf(relation, "score")),
      el("td", { class: "whole" }, plotOf(relation, "depth")),
      ...relation.atlases.map((row, at) =>
        el("td", { class: "words" }, ...bestOf(atlas, comparison, row, at, handlers)),
      ),
    );
  });
  const left = Object.entries(data.left_out);
  return {
    node: el(
      "section",
      { "aria-labelledby": "side-title" },
      el("h2", { id: "side-title" }, "Relation by relation"),
      data.not_by_head && el("p", {}, `${data.not_by_head}.`),
      el(
        "p",
        { class: "quiet" },
        "Best head of each relation, with its 95 % interval, how deep it sits (0 the first layer, 1 the last), " +
          "and how many heads implement the relation. Hollow: none does, and the best head is shown all the same. ",
        hint(
          "comparable?",
          "Different tokenizers use different pairs of a relation, which is part of any difference.",
        ),
      ),
      el(
        "ul",
        { class: "legend", "aria-label": "Atlases" },
        ...labels.map((label, at) => el("li", {}, key(at), label)),
      ),
      el(
        "div",
        { class: "scroller", tabindex: 0, role: "region", "aria-label": "Relations of all atlases" },
        el(
          "table",
          { class: "relations" },
          el(
            "thead",
            {},
            el("tr", {}, ...headings.map(([name, kind]) => el("th", { scope: "col", class: kind }, name))),
          ),
          el("tbody", {}, ...rows),
        ),
      ),
      ...agreement(data),
      left.length > 0 &&
        el(
          "p",
          { class: "quiet" },
          `Not compared: ${left.map(([name, why]) => `${name} (${why})`).join("; ")}.`,
        ),
    ),
  };
}

const mark = (at, x, y, hollow) =>
  svg("path", {
    class: hollow ? "atlas-mark hollow" : "atlas-mark",
    "data-atlas": at % SHAPES.length,
    d: SHAPES[at % SHAPES.length],
    transform: `translate(${x.toFixed(1)} ${y})`,
  });

const key = (at) =>
  svg(
    "svg",
    { class: "atlas-key", width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
    mark(at, 0, 0, false),
  );

/** One line from 0 to 1 with a mark for each atlas; joined in their order, so that a drift over revisions is seen. */
function plotOf({ title, atlases }, what) {
  const { width, row: step, pad } = PLOT;
  const height = 2 * pad + step * (atlases.length - 1);
  const x = (value) => pad + value * (width - 2 * pad);
  const y = (at) => pad + step * at;
  const there = atlases.map((row, at) => ({ row, at })).filter(({ row }) => row);
  const said = there.map(({ row, at }) => `atlas ${at + 1}: ${share(row[what])}`).join(", ");
  const path = there.map(({ row, at }, i) => `${i ? "L" : "M"}${x(row[what]).toFixed(1)} ${y(at)}`).join("");
  return svg(
    "svg",
    {
      class: "atlas-plot",
      width,
      height,
      role: "img",
      "aria-label": `${title}, ${what} of the best head: ${said}`,
    },
    svg("path", { class: "guide", d: [0, 0.5, 1].map((value) => `M${x(value)} 0V${height}`).join("") }),
    svg("path", { class: "atlas-path", d: path }),
    what === "score" &&
      svg("path", {
        class: "atlas-range",
        d: there
          .map(({ row, at }) => `M${x(row.low).toFixed(1)} ${y(at)}H${x(row.high).toFixed(1)}`)
          .join(""),
      }),
    ...there.map(({ row, at }) => mark(at, x(row[what]), y(at), row.n_implementing === 0)),
  );
}

function bestOf(atlas, comparison, row, at, handlers) {
  if (!row) return ["not scored"];
  const name = `${row.layer}.${row.head}`;
  // Where the models have one shape, the head of each atlas is a head of this page.
  const here = comparison.steps.length || at === comparison.data.labels.length - 1;
  const cell = row.layer * atlas.nHeads + row.head;
  const range = el("span", { class: "quiet" }, ` ${row.low.toFixed(2)}–${row.high.toFixed(2)}`);
  return [
    here ? headButton(name, cell, handlers) : name,
    ` ${share(row.score)}`,
    range,
    `, ${count(row.n_implementing, "head")}`,
  ];
}

/** Spearman's correlation of two atlases over relations. */
function agreement({ agreement: pairs }) {
  const said = (value, p, n) =>
    value === null
      ? `too few relations (${n})`
      : `${value.toFixed(2)} (p ${p < 0.001 ? "< 0.001" : `= ${p.toFixed(3)}`}, ${n} relations)`;
  return [
    el("h3", {}, "Agreement over relations"),
    el(
      "ul",
      {},
      ...pairs.map((each) =>
        el(
          "li",
          {},
          `${each.first} and ${each.second}: best scores ${said(each.score, each.score_p, each.n_score)}, ` +
            `depths ${said(each.depth, each.depth_p, each.n_depth)}`,
        ),
      ),
    ),
    hint(
      "agreement?",
      "Spearman's correlation, p by permutation; depths over relations that both implement. With 10 to 20 relations " +
        "its power is small.",
    ),
  ];
}

/** The relations asked: what was used, what was not and why, and the best head of each. */

import { headName } from "./atlas.mjs";
import { el, headButton, relationButton } from "./dom.mjs";
import { count, interval, share } from "./format.mjs";

const HEADER = [
  ["Relation", "words"],
  ["Category", "words"],
  ["Best head", "whole"],
  ["Heads", "number"],
  ["Sources used", "number"],
  ["Targets", "number"],
  ["Sources not used", "words"],
];

/**
 * Build the table of relations.
 *
 * @param handlers open(cell, how), choose(relation index).
 * @returns node, sync(view).
 */
export function createRelations(atlas, handlers) {
  const calls = new Map(atlas.scored.map((relation) => [relation.index, el("td", { class: "number" })]));
  const best = new Map(atlas.scored.map((relation) => [relation.index, el("td", { class: "whole" })]));
  const body = atlas.scored.map((relation) => {
    return el(
      "tr",
      {},
      el("th", { class: "words", scope: "row" }, relationButton(relation, handlers)),
      el("td", { class: "words" }, atlas.categories[relation.category]),
      best.get(relation.index),
      calls.get(relation.index),
      el("td", { class: "number" }, `${relation.n_sources} of ${relation.n_pairs}`),
      el("td", { class: "number" }, String(relation.n_targets)),
      el("td", { class: "words" }, ...dropped(relation)),
    );
  });
  const names = HEADER.map(([label, kind]) => el("th", { scope: "col", class: kind }, label));
  const node = el(
    "section",
    { "aria-labelledby": "relations-title" },
    el("h2", { id: "relations-title" }, "Relations asked"),
    leftOut(atlas),
    el(
      "div",
      { class: "scroller", tabindex: 0, role: "region", "aria-label": "Table of relations" },
      el("table", { class: "relations" }, el("thead", {}, el("tr", {}, ...names)), el("tbody", {}, ...body)),
    ),
  );
  /** @type {any} */
  let shown = null;
  return {
    node,
    sync({ reading }) {
      if (shown === reading) return;
      shown = reading;
      for (const relation of atlas.scored) {
        calls.get(relation.index).textContent = callsOf(atlas, reading, relation).toLocaleString("en");
        best.get(relation.index).replaceChildren(...bestHead(atlas, reading, relation, handlers));
      }
    },
  };
}

function callsOf(atlas, reading, relation) {
  if (reading.everything) return atlas.nMapped;
  let total = 0;
  for (let row = relation.first; row < relation.last; row += 1) total += reading.effect[row] ? 1 : 0;
  return total;
}

function bestHead(atlas, { scores }, relation, handlers) {
  let best = -1;
  for (let row = relation.first; row < relation.last; row += 1) {
    if (scores.score[row] > (best < 0 ? 0 : scores.score[best])) best = row;
  }
  if (best < 0) return ["no head promotes it"];
  const cell = atlas.rows.cell[best];
  const name = headName(atlas, cell);
  const range = el("span", { class: "quiet" }, ` ${interval(scores.hits[best], relation.n_sources)}`);
  return [headButton(name, cell, handlers), ` ${share(scores.score[best])}`, range];
}

function dropped(relation) {
  if (!relation.dropped.length) return ["none"];
  return relation.dropped.map(({ reason, count: n, examples }) => {
    const rest = n > examples.length ? ", …" : "";
    return el(
      "details",
      {},
      el("summary", {}, `${n}: ${reason}`),
      el("p", { class: "quiet" }, examples.join(", ") + rest),
    );
  });
}

function leftOut(atlas) {
  const missing = atlas.relations.filter((relation) => relation.left_out);
  if (!missing.length)
    return el("p", {}, `All ${count(atlas.relations.length, "relation")} could be scored.`);
  return el(
    "div",
    { class: "left-out" },
    el(
      "p",
      {},
      `${count(missing.length, "relation")} left out; the colours say nothing about what is missing:`,
    ),
    el(
      "ul",
      {},
      ...missing.map((relation) =>
        el(
          "li",
          {},
          el("strong", {}, relation.title),
          ` (${atlas.categories[relation.category]}): ${relation.left_out}`,
          ...relation.dropped.map(({ reason, count: n }) => `; ${n}: ${reason}`),
        ),
      ),
    ),
  );
}

/** The relations of one head on its card, with the pairs hit and missed. */

import { confirmedName, isSuppression, PROMOTES, rowsOfHead, SUPPRESSES, strength } from "./atlas.mjs";
import { bar, button, el, fold, hint, more } from "./dom.mjs";
import { count, interval, rate, share } from "./format.mjs";
import { pairsOf } from "./words.mjs";

const ROWS = 6;
const PAIRS = 60;

/** The relations of a head, those that pass first; each opens into its pairs. */
export function relationsOf(view, handlers) {
  const { atlas, cell, reading } = view;
  const all = rowsOfHead(atlas, cell).sort(
    (a, b) =>
      Number(reading.effect[b] > 0) - Number(reading.effect[a] > 0) ||
      strength(reading, b) - strength(reading, a),
  );
  const rows = all.filter((row) => reading.effect[row] || strength(reading, row) > 0);
  const called = rows.filter((row) => reading.effect[row]).length;
  const first = Math.max(ROWS, Math.min(called, 12));
  const body = (some) =>
    el("div", { class: "card-rows" }, ...some.map((row) => relationRow(view, row, handlers)));
  return [
    el("h3", {}, "Relations ", el("span", { class: "count" }, called ? `${called} pass` : "none passes")),
    rows.length ? body(rows.slice(0, first)) : el("p", { class: "quiet" }, "No source is hit at this k."),
    more(rows.length - first, "relation", () => body(rows.slice(first))),
    hint(
      "control, q?",
      "Control is the score of the state itself at this layer, without any head: a late state may already " +
        "hold the answer. " +
        "Added is the share of sources that the head hits and the state does not. q asks whether the head " +
        "would score as high " +
        "if the targets were dealt to the sources at random. What a head writes if it attends does not " +
        "say whether it does.",
    ),
  ];
}

function relationRow(view, row, handlers) {
  const { atlas, reading } = view;
  const { scores } = reading;
  const relation = atlas.relations[atlas.rows.relation[row]];
  const down = isSuppression(reading, row);
  const bits = reading.effect[row];
  const facts = [];
  for (const bit of [PROMOTES, SUPPRESSES]) {
    const up = bit === PROMOTES;
    const hits = (up ? scores.hits : scores.suppressed)[row];
    if (!hits || !(bits & bit || up !== down)) continue;
    const q = (up ? scores.q : scores.suppressionQ)[row];
    facts.push(
      el(
        "span",
        { class: bits & bit ? "fact called" : "fact" },
        `${up ? "promotes" : "suppresses"} `,
        el("b", {}, share((up ? scores.score : scores.suppression)[row])),
        ` (${interval(hits, relation.n_sources)}), q ${Number.isNaN(q) ? "unknown at this k" : rate(q)}`,
      ),
    );
  }
  const control = down ? "" : `control ${share(scores.control[row])}, added ${share(scores.addedShare[row])}`;
  const proof = evidenceOf(atlas, row);
  const summary = el(
    "summary",
    {},
    el("span", { class: "relation-name" }, relation.title),
    bar((down ? scores.suppression : scores.score)[row], { down, mark: reading.thresholds.tau }),
    el(
      "span",
      { class: "facts-line" },
      ...facts,
      control && el("span", { class: "quiet" }, control),
      proof && el("span", { class: "quiet" }, proof),
    ),
  );
  const key = { class: bits ? "relation-row called" : "relation-row", "data-key": relation.name };
  return fold(key, summary, () => [
    button("Show this relation in the figure", () => handlers.choose(relation.index), { class: "link" }),
    ...["promotion", "suppression"]
      .filter((sign) => atlas.ranks[sign].start[row + 1] > atlas.ranks[sign].start[row])
      .map((sign) => pairList(view, row, sign)),
  ]);
}

function evidenceOf(atlas, row) {
  const bits = atlas.rows.confirmed[row];
  const { context, loss_alone: loss, loss_alone_q: q } = atlas.evidence;
  const parts = [];
  if (bits) parts.push(`confirmed: ${confirmedName(bits)}`);
  if (context && !Number.isNaN(context[row])) parts.push(`in running text ${share(context[row])}`);
  if (loss && !Number.isNaN(loss[row]))
    parts.push(`answers lost without it ${share(loss[row])}, q ${rate(q[row])}`);
  return parts.join("; ");
}

function rankWords({ atlas }, { rank, controlHit }) {
  const words = `rank ${rank ?? `${atlas.ceiling} or beyond`}`;
  return controlHit ? `${words}; the state itself hits this source` : words;
}

function pairList(view, row, sign) {
  const pairs = pairsOf(view.atlas, view.reading.scores, row, sign);
  const hit = pairs.filter((each) => each.hit);
  const missed = pairs.filter((each) => !each.sourceHit);
  const sources = (some) => new Set(some.map((each) => each.at)).size;
  const chip = (each) =>
    el(
      "li",
      {
        class: each.controlHit ? "by-state" : false,
        title: rankWords(view, each),
      },
      `${each.source} → ${each.target}`,
      each.rank !== null && el("sub", {}, ` ${each.rank}`),
    );
  const list = (title, some) =>
    some.length > 0 && [
      el("p", { class: "quiet" }, title),
      el(
        "ul",
        { class: "pairs", tabindex: 0 },
        ...some.slice(0, PAIRS).map(chip),
        some.length > PAIRS && el("li", { class: "quiet" }, `and ${some.length - PAIRS} more`),
      ),
    ];
  const verb = sign === "promotion" ? "Hit" : "Suppressed";
  return el(
    "div",
    { class: "pair-lists" },
    ...(list(`${verb}: ${count(sources(hit), "source")}, with the rank of the target`, hit) || []),
    ...(list(`Missed: ${count(sources(missed), "source")}`, missed) || []),
    hit.some((each) => each.controlHit) &&
      sign === "promotion" &&
      el("p", { class: "quiet" }, "Dotted: the state itself hits the source, too."),
  );
}

/** The card of one head: all that the atlas says about it, beside the figure. */

import {
  confirmedName,
  headName,
  isMapped,
  isSuppression,
  PROMOTES,
  rowsOfHead,
  strength,
  SUPPRESSES,
} from "./atlas.mjs";
import { button, el, hint, svg } from "./dom.mjs";
import { count, interval, rate, share } from "./format.mjs";
import { BY_MAPPINGS, similarHeads, spoken, UNCLEAR } from "./measures.mjs";
import { unmappedWhy } from "./tooltip.mjs";
import { pairsOf } from "./words.mjs";

const ROWS = 6;
const BEHAVIOURS = 5;
const OPERATIONS = 6;
const PAIRS = 60;

/**
 * Build the place of the card.
 *
 * @param handlers open(cell, how), close(), choose(relation index), words(): what gives the salience (a promise).
 * @returns node, sync(view), focus(), title.
 */
export function createCard(atlas, handlers) {
  const title = el("h2", { tabindex: -1, id: "card-title" });
  const body = el("div", { class: "card-body" });
  const close = button("×", handlers.close, { class: "close", "aria-label": "Close the card" });
  const node = el(
    "section",
    { class: "card", "aria-labelledby": "card-title", on: { keydown: (event) => event.key === "Escape" && handlers.close() } },
    el("div", { class: "card-head" }, title, close),
    body,
  );
  let shown = null;
  return {
    node,
    title,
    sync(view) {
      const { cell } = view;
      node.dataset.empty = String(cell === null);
      close.hidden = cell === null;
      if (shown && shown.cell === cell && shown.reading === view.reading && shown.salience === view.salience) return;
      // What was opened stays open while k and τ move.
      const open = shown?.cell === cell ? new Set([...body.querySelectorAll("details[open][data-key]")].map((each) => each.dataset.key)) : new Set();
      shown = { cell, reading: view.reading, salience: view.salience };
      title.textContent = cell === null ? "Heads" : `Head ${headName(atlas, cell)}`;
      body.replaceChildren(...(cell === null ? nobody(view, handlers) : contents(view, handlers)));
      for (const each of body.querySelectorAll("details[data-key]")) each.open = open.has(each.dataset.key);
    },
  };
}

/** Without a head: what to do, and the heads that stand out. */
function nobody(view, handlers) {
  const { atlas, reading } = view;
  const best = new Map();
  for (let row = 0; row < atlas.rows.length; row += 1) {
    if (!reading.effect[row] || (view.chosen && !view.chosen.has(atlas.rows.relation[row]))) continue;
    const cell = atlas.rows.cell[row];
    if (!best.has(cell) || strength(reading, row) > strength(reading, best.get(cell))) best.set(cell, row);
  }
  const rows = [...best.values()].sort((a, b) => strength(reading, b) - strength(reading, a)).slice(0, 12);
  return [
    el("p", {}, "Choose a head in the figure to see all that is known about it: what it writes, where it looks, and the words."),
    rows.length ? el("h3", {}, view.about ? `Strongest on ${view.about}` : "Strongest heads") : el("p", { class: "quiet" }, "No head passes this criterion."),
    el(
      "ul",
      { class: "strongest" },
      ...rows.map((row) =>
        el(
          "li",
          {},
          headButton(atlas, atlas.rows.cell[row], handlers),
          ` ${isSuppression(reading, row) ? "suppresses " : ""}${atlas.relations[atlas.rows.relation[row]].title} `,
          el("span", { class: "count" }, share(strength(reading, row))),
        ),
      ),
    ),
  ];
}

function headButton(atlas, cell, handlers, label = headName(atlas, cell)) {
  return button(label, () => handlers.open(cell, "link"), { class: "link", "aria-label": `Open head ${headName(atlas, cell)}` });
}

function contents(view, handlers) {
  const { atlas, cell } = view;
  const layer = Math.floor(cell / atlas.nHeads);
  if (!isMapped(atlas, cell)) return [el("p", {}, unmappedWhy(atlas, layer))];
  return [
    ...group(view, handlers),
    ...labels(view),
    ...relations(view, handlers),
    ...looks(view),
    ...operations(view),
    ...spectrum(view),
    ...similar(view, handlers),
  ].filter(Boolean);
}

/** What a part of the card is that was never measured, and the command that does it. */
function missing(title, command) {
  return [el("h3", {}, title), el("p", { class: "quiet" }, "Not measured: ", el("code", {}, `headatlas ${command} DIR`))];
}

function group({ atlas, cell }, handlers) {
  const size = atlas.data.group_size;
  if (size < 2) return [];
  const head = cell % atlas.nHeads;
  const first = cell - (head % size);
  const mates = Array.from({ length: size }, (_, i) => first + i).filter((each) => each !== cell);
  return [el("p", { class: "mates" }, "Shares keys and values with ", ...mates.flatMap((each, i) => [i ? ", " : "", headButton(atlas, each, handlers)]))];
}

function labels({ heads, cell }) {
  const own = heads.labelsOf.get(cell);
  if (!heads.labelsOf.size) return missing("Label", "label");
  const line = (each) => {
    const tested =
      each.kind === BY_MAPPINGS
        ? `picks ${share(each.score)} of its mappings, chance ${share(each.chance)}`
        : "rests on attention (q), not scored by mappings";
    return el(
      "li",
      {},
      el("strong", { class: each.label === UNCLEAR ? "quiet" : false }, each.label),
      el("br"),
      el("span", { class: "quiet" }, [each.label === UNCLEAR && each.kind === BY_MAPPINGS ? `no description does better than chance: ${tested}` : tested, `by ${each.author}`, each.support].filter(Boolean).join("; ")),
    );
  };
  return [
    el("h3", {}, "Label"),
    own ? el("ul", { class: "labels" }, ...own.map(line)) : el("p", { class: "quiet" }, "none"),
    hint("what is a label worth?", heads.captions.labels),
  ];
}

// Relations -------------------------------------------------------------------------------------------

function relations(view, handlers) {
  const { atlas, cell, reading } = view;
  const all = rowsOfHead(atlas, cell).sort((a, b) => Boolean(reading.effect[b]) - Boolean(reading.effect[a]) || strength(reading, b) - strength(reading, a));
  const rows = all.filter((row) => reading.effect[row] || strength(reading, row) > 0);
  const called = rows.filter((row) => reading.effect[row]).length;
  const first = Math.max(ROWS, Math.min(called, 12));
  const body = (some) => el("div", { class: "card-rows" }, ...some.map((row) => relationRow(view, row, handlers)));
  return [
    el("h3", {}, "Relations ", el("span", { class: "count" }, called ? `${called} pass` : "none passes")),
    rows.length ? body(rows.slice(0, first)) : el("p", { class: "quiet" }, "No source is hit at this k."),
    more(rows.length - first, "relation", () => body(rows.slice(first))),
    hint(
      "control, q?",
      "Control is the score of the state itself at this layer, without any head: a late state may already hold the answer. " +
        "Added is the share of sources that the head hits and the state does not. q asks whether the head would score as high " +
        "if the targets were dealt to the sources at random. What a head writes if it attends does not say whether it does.",
    ),
  ];
}

/** Further entries, made when they are asked for. */
function more(n, noun, make) {
  if (n <= 0) return null;
  const node = el("details", { class: "more", "data-key": `more-${noun}` }, el("summary", {}, `${count(n, noun)} more`));
  node.addEventListener("toggle", () => node.open && node.children.length === 1 && node.append(make()));
  return node;
}

function relationRow(view, row, handlers) {
  const { atlas, reading } = view;
  const { scores } = reading;
  const relation = atlas.relations[atlas.rows.relation[row]];
  const down = isSuppression(reading, row);
  const bits = reading.effect[row];
  const facts = [];
  for (const [bit, sign] of [[PROMOTES, "promotion"], [SUPPRESSES, "suppression"]]) {
    const up = sign === "promotion";
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
  const node = el(
    "details",
    { class: bits ? "relation-row called" : "relation-row", "data-key": relation.name },
    el(
      "summary",
      {},
      el("span", { class: "relation-name" }, relation.title),
      bar(down ? scores.suppression[row] : scores.score[row], down, reading.thresholds.tau),
      el("span", { class: "facts-line" }, ...facts, control && el("span", { class: "quiet" }, control), proof && el("span", { class: "quiet" }, proof)),
    ),
  );
  node.addEventListener("toggle", () => {
    if (node.open && node.children.length === 1) {
      node.append(
        button("Show this relation in the figure", () => handlers.choose(relation.index), { class: "link" }),
        ...["promotion", "suppression"].filter((sign) => atlas.ranks[sign].start[row + 1] > atlas.ranks[sign].start[row]).map((sign) => pairList(view, row, sign)),
      );
    }
  });
  return node;
}

/** A score as a bar from 0 to 1, with τ as a line. */
function bar(value, down, tau) {
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "bar-ground", width: 100, height: 8 }),
    svg("rect", { class: down ? "bar-down" : "bar-up", width: 100 * value, height: 8 }),
    svg("rect", { class: "bar-tau", x: 100 * tau - 0.3, width: 0.6, height: 8 }),
  );
}

function evidenceOf(atlas, row) {
  const bits = atlas.rows.confirmed[row];
  const { context, loss_alone: loss, loss_alone_q: q } = atlas.evidence;
  const parts = [];
  if (bits) parts.push(`confirmed: ${confirmedName(bits)}`);
  if (context && !Number.isNaN(context[row])) parts.push(`in running text ${share(context[row])}`);
  if (loss && !Number.isNaN(loss[row])) parts.push(`answers lost without it ${share(loss[row])}, q ${rate(q[row])}`);
  return parts.join("; ");
}

function pairList(view, row, sign) {
  const pairs = pairsOf(view.atlas, view.reading.scores, row, sign);
  const hit = pairs.filter((each) => each.hit);
  const missed = pairs.filter((each) => !each.sourceHit);
  const sources = (some) => new Set(some.map((each) => each.at)).size;
  const chip = (each) =>
    el(
      "li",
      { class: each.controlHit ? "by-state" : false, title: `rank ${each.rank ?? `${view.atlas.ceiling} or beyond`}${each.controlHit ? "; the state itself hits this source" : ""}` },
      `${each.source} → ${each.target}`,
      each.rank !== null && el("sub", {}, ` ${each.rank}`),
    );
  const list = (title, some) =>
    some.length > 0 && [
      el("p", { class: "quiet" }, title),
      el("ul", { class: "pairs" }, ...some.slice(0, PAIRS).map(chip), some.length > PAIRS && el("li", { class: "quiet" }, `and ${some.length - PAIRS} more`)),
    ];
  const verb = sign === "promotion" ? "Hit" : "Suppressed";
  return el(
    "div",
    { class: "pair-lists" },
    ...(list(`${verb}: ${count(sources(hit), "source")}, with the rank of the target`, hit) || []),
    ...(list(`Missed: ${count(sources(missed), "source")}`, missed) || []),
    hit.some((each) => each.controlHit) && sign === "promotion" && el("p", { class: "quiet" }, "Dotted: the state itself hits the source, too."),
  );
}

// Attention, tokens, likeness ---------------------------------------------------------------------------

function looks({ heads, cell }) {
  if (!heads.behaviours.length) return missing("Where it looks", "behaviour");
  const there = heads.behaviours.filter((each) => !Number.isNaN(each.value[cell]));
  const excess = (each) => each.value[cell] - each.expected[cell];
  const tested = there.filter((each) => each.tested).sort((a, b) => b.called[cell] - a.called[cell] || excess(b) - excess(a));
  const called = tested.filter((each) => each.called[cell]).length;
  const first = Math.max(BEHAVIOURS, called);
  const line = (each) =>
    el(
      "tr",
      { class: each.called[cell] ? "called" : false },
      el("th", { scope: "row" }, spoken(each.name)),
      el("td", {}, attentionBar(each, cell)),
      el("td", { class: "number" }, each.value[cell].toFixed(2)),
      el("td", { class: "number quiet" }, each.expected[cell].toFixed(2)),
      el("td", { class: "number quiet" }, rate(each.q[cell])),
    );
  const table = (some, headed) =>
    el(
      "table",
      { class: "looks" },
      headed && el("thead", {}, el("tr", {}, ...["Attention to", "", "Share", "Expected", "q"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...some.map(line)),
    );
  const others = there.filter((each) => !each.tested).map((each) => `${spoken(each.name)} ${each.value[cell].toFixed(2)}`);
  return [
    el("h3", {}, "Where it looks ", el("span", { class: "count" }, called ? `${called} called` : "nothing called")),
    table(tested.slice(0, first), true),
    more(tested.length - first, "behaviour", () => table(tested.slice(first), false)),
    others.length > 0 && el("p", { class: "quiet" }, others.join(", ")),
    hint("on which texts?", heads.captions.behaviour),
  ];
}

function attentionBar(each, cell) {
  const [value, expected, low, high] = [each.value[cell], each.expected[cell], each.low[cell], each.high[cell]];
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "bar-ground", width: 100, height: 8 }),
    svg("rect", { class: "bar-up", width: 100 * value, height: 8 }),
    svg("rect", { class: "bar-range", x: 100 * low, y: 3, width: Math.max(0, 100 * (high - low)), height: 2 }),
    svg("rect", { class: "bar-tau", x: 100 * expected - 0.4, width: 0.8, height: 8 }),
  );
}

const token = (text) => el("code", { class: "token" }, text.replace(/^ /, "␣"));

function tokens(texts) {
  return el("span", { class: "tokens" }, ...texts.flatMap((text) => [token(text), " "]));
}

function operations({ atlas, salience, heads, cell }) {
  if (!atlas.data.packed.salience) return missing("Salient operations", "salience");
  if (!salience) return [el("h3", {}, "Salient operations"), el("p", { class: "quiet" }, "Reading …")];
  const all = salience.operations(cell);
  const line = (each) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, token(each.source)),
      el("td", {}, tokens(each.promoted)),
      el("td", {}, tokens(each.suppressed)),
      el("td", { class: "number quiet" }, each.gain.toFixed(1)),
    );
  const table = (some, headed) =>
    el(
      "table",
      { class: "operations" },
      headed && el("thead", {}, el("tr", {}, ...["Reads", "Promotes", "Suppresses", "Gain"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...some.map(line)),
    );
  return [
    el("h3", {}, "Salient operations"),
    all.length ? table(all.slice(0, OPERATIONS), true) : el("p", { class: "quiet" }, "none"),
    more(all.length - OPERATIONS, "operation", () => table(all.slice(OPERATIONS), false)),
    ...explained(salience.explained(cell), heads, cell),
    hint("what is salient?", heads.captions.salience),
  ];
}

function explained(found, heads, cell) {
  if (!found.length) return [];
  const [relations, rest] = found;
  const parts = [`Known relations account for ${Math.round(100 * heads.explained[cell])} % of it`];
  if (relations.length) parts.push(`: ${relations.map(([name, n]) => `${spoken(name)} (${n})`).join(", ")}`);
  if (rest.length) parts.push(`; the rest reads ${rest.map(([field, n]) => `${field} (${n})`).join(", ")}`);
  return [el("p", {}, parts.join(""))];
}

function spectrum({ salience, heads, cell }) {
  if (!salience || !heads.effectiveRank || Number.isNaN(heads.effectiveRank[cell])) return [];
  const values = salience.values(cell);
  const largest = values[0] || 1;
  const bars = values.map((value, i) => {
    const tall = (24 * value) / largest;
    return svg("rect", { class: "bar-up", x: i * 6, y: 24 - tall, width: 5, height: tall });
  });
  const end = ({ reads, promotes, suppresses }) =>
    el("li", {}, "reads ", tokens(reads), " promotes ", tokens(promotes), " suppresses ", tokens(suppresses));
  const directions = salience.directions(cell);
  return [
    el("h3", {}, "Spectrum"),
    el(
      "p",
      {},
      `effective rank ${heads.effectiveRank[cell].toFixed(1)}, copying ${heads.copying[cell].toFixed(2)} (−1 … 1), ` +
        `${(100 * heads.normShare[cell]).toFixed(0)} % of the layer's norm`,
    ),
    svg(
      "svg",
      { class: "spectrum", width: values.length * 6, height: 24, role: "img", "aria-label": `The ${values.length} largest singular values, from ${largest.toFixed(1)} down to ${values[values.length - 1].toFixed(1)}` },
      ...bars,
    ),
    more(directions.length, "direction", () =>
      el("ol", { class: "directions" }, ...directions.map((each) => el("li", {}, `singular value ${each.value.toFixed(1)}`, el("ul", {}, ...each.ends.map(end))))),
    ),
  ];
}

function similar(view, handlers) {
  const found = similarHeads(view, view.cell);
  if (!found.length) return [];
  return [
    el("h3", {}, "Similar heads"),
    el(
      "p",
      {},
      ...found.flatMap((each, i) => [i ? ", " : "", headButton(view.atlas, each.cell, handlers), ` ${each.similarity.toFixed(2)}`]),
    ),
    hint("similar in what?", "Cosine of the scores on all relations, and likeness of where they look; the mean of the two where both are known."),
  ];
}

/** What else was measured of one head, on its card: attention, salient operations, spectrum. */

import { bar, el, hint, missing, more, svg } from "./dom.mjs";
import { rate } from "./format.mjs";
import { spoken } from "./measures.mjs";

const BEHAVIOURS = 5;
const OPERATIONS = 6;

/** Where a head looks: its attention to some kinds of places, with what is expected. */
export function looksOf({ heads, cell }) {
  if (!heads.behaviours.length) return missing("Where it looks", "behaviour");
  const there = heads.behaviours.filter((each) => !Number.isNaN(each.value[cell]));
  const excess = (each) => each.value[cell] - each.expected[cell];
  const tested = there
    .filter((each) => each.tested)
    .sort((a, b) => b.called[cell] - a.called[cell] || excess(b) - excess(a));
  const called = tested.filter((each) => each.called[cell]).length;
  const first = Math.max(BEHAVIOURS, called);
  const line = (each) =>
    el(
      "tr",
      { class: each.called[cell] ? "called" : false },
      el("th", { scope: "row" }, spoken(each.name)),
      el(
        "td",
        {},
        bar(each.value[cell], { mark: each.expected[cell], range: [each.low[cell], each.high[cell]] }),
      ),
      el("td", { class: "number" }, each.value[cell].toFixed(2)),
      el("td", { class: "number quiet" }, each.expected[cell].toFixed(2)),
      el("td", { class: "number quiet" }, rate(each.q[cell])),
    );
  const table = (some, headed) =>
    el(
      "table",
      { class: "looks" },
      headed &&
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...["Attention to", "", "Share", "Expected", "q"].map((name) =>
              el(name ? "th" : "td", name ? { scope: "col" } : {}, name),
            ),
          ),
        ),
      el("tbody", {}, ...some.map(line)),
    );
  const others = there
    .filter((each) => !each.tested)
    .map((each) => `${spoken(each.name)} ${each.value[cell].toFixed(2)}`);
  return [
    el(
      "h3",
      {},
      "Where it looks ",
      el("span", { class: "count" }, called ? `${called} called` : "nothing called"),
    ),
    table(tested.slice(0, first), true),
    more(tested.length - first, "behaviour", () => table(tested.slice(first), false)),
    others.length > 0 && el("p", { class: "quiet" }, others.join(", ")),
    hint("on which texts?", heads.captions.behaviour),
  ];
}

const token = (text) => el("code", { class: "token" }, text.replace(/^ /, "␣"));

function tokens(texts) {
  return el("span", { class: "tokens" }, ...texts.flatMap((text) => [token(text), " "]));
}

/** What a head writes most strongly, and for which tokens. */
export function operationsOf({ atlas, salience, heads, cell }) {
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
      headed &&
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...["Reads", "Promotes", "Suppresses", "Gain"].map((name) => el("th", { scope: "col" }, name)),
          ),
        ),
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

/** The singular values of what a head does, and the directions of the largest. */
export function spectrumOf({ salience, heads, cell }) {
  if (!salience || !heads.effectiveRank || Number.isNaN(heads.effectiveRank[cell])) return [];
  const values = salience.values(cell);
  const largest = values[0] || 1;
  const bars = values.map((value, i) => {
    const tall = (24 * value) / largest;
    return svg("rect", { class: "bar-up", x: i * 6, y: 24 - tall, width: 5, height: tall });
  });
  const end = ({ reads, promoted, suppressed }) =>
    el("li", {}, "reads ", tokens(reads), " promotes ", tokens(promoted), " suppresses ", tokens(suppressed));
  const directions = salience.directions(cell);
  return [
    el("h3", {}, "Spectrum"),
    el(
      "p",
      {},
      `effective rank ${heads.effectiveRank[cell].toFixed(1)}, copying ` +
        `${heads.copying[cell].toFixed(2)} (−1 … 1), ${(100 * heads.normShare[cell]).toFixed(0)} % of ` +
        "the layer's norm",
    ),
    svg(
      "svg",
      {
        class: "spectrum",
        width: values.length * 6,
        height: 24,
        role: "img",
        "aria-label":
          `The ${values.length} largest singular values, from ${largest.toFixed(1)} down to ` +
          `${values[values.length - 1].toFixed(1)}`,
      },
      ...bars,
    ),
    more(directions.length, "direction", () =>
      el(
        "ol",
        { class: "directions" },
        ...directions.map((each) =>
          el("li", {}, `singular value ${each.value.toFixed(1)}`, el("ul", {}, ...each.ends.map(end))),
        ),
      ),
    ),
  ];
}

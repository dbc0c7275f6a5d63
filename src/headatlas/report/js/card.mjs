/** The card of one head: all that the atlas says about it, beside the figure. */

import { headName, isMapped, isSuppression, strength } from "./atlas.mjs";
import { changesOf } from "./changetable.mjs";
import { button, el, headButton, hint, missing, unfold } from "./dom.mjs";
import { share } from "./format.mjs";
import { looksOf, operationsOf, spectrumOf } from "./measured.mjs";
import { similarHeads, UNCLEAR } from "./measures.mjs";
import { relationsOf } from "./relationrows.mjs";
import { unmappedWhy } from "./tooltip.mjs";

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
    {
      class: "card",
      "aria-labelledby": "card-title",
      on: { keydown: (event) => event.key === "Escape" && handlers.close() },
    },
    el("div", { class: "card-head" }, title, close),
    body,
  );
  /** @type {any[] | null} */
  let shown = null;
  return {
    node,
    title,
    sync(view) {
      const { cell } = view;
      node.dataset.empty = String(cell === null);
      close.hidden = cell === null;
      const key = [cell, view.reading, view.salience, view.step];
      if (shown?.every((each, i) => each === key[i])) return;
      // What was opened stays open while k and τ move.
      const open =
        shown?.[0] === cell
          ? new Set([...body.querySelectorAll("details[open][data-key]")].map((each) => each.dataset.key))
          : new Set();
      shown = key;
      title.textContent = cell === null ? "Heads" : `Head ${headName(atlas, cell)}`;
      body.replaceChildren(...(cell === null ? nobody(view, handlers) : contents(view, handlers)));
      for (const each of body.querySelectorAll("details[data-key]"))
        open.has(each.dataset.key) && unfold(each);
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
    el(
      "p",
      {},
      "Choose a head in the figure to see all that is known about it: what it writes, where it looks, " +
        "and the words.",
    ),
    rows.length
      ? el("h3", {}, view.about ? `Strongest on ${view.about}` : "Strongest heads")
      : el("p", { class: "quiet" }, "No head passes this criterion."),
    el(
      "ul",
      { class: "strongest" },
      ...rows.map((row) =>
        el(
          "li",
          {},
          headButton(headName(atlas, atlas.rows.cell[row]), atlas.rows.cell[row], handlers),
          ` ${isSuppression(reading, row) ? "suppresses " : ""}${atlas.relations[atlas.rows.relation[row]].title} `,
          el("span", { class: "count" }, share(strength(reading, row))),
        ),
      ),
    ),
  ];
}

function contents(view, handlers) {
  const { atlas, cell } = view;
  const layer = Math.floor(cell / atlas.nHeads);
  if (!isMapped(atlas, cell)) return [el("p", {}, unmappedWhy(atlas, layer))];
  return [
    ...group(view, handlers),
    ...labels(view),
    ...relationsOf(view, handlers),
    ...changesOf(view),
    ...looksOf(view),
    ...operationsOf(view),
    ...spectrumOf(view),
    ...similar(view, handlers),
  ].filter(Boolean);
}

function group({ atlas, cell }, handlers) {
  const size = atlas.data.group_size;
  if (size < 2) return [];
  const head = cell % atlas.nHeads;
  const first = cell - (head % size);
  const mates = Array.from({ length: size }, (_, i) => first + i).filter((each) => each !== cell);
  return [
    el(
      "p",
      { class: "mates" },
      "Shares keys and values with ",
      ...mates.flatMap((each, i) => [i ? ", " : "", headButton(headName(atlas, each), each, handlers)]),
    ),
  ];
}

function labels({ heads, cell }) {
  const own = heads.labelsOf.get(cell);
  if (!heads.labelsOf.size) return missing("Label", "label");
  const line = (each) => {
    // What rests on attention has no score, and its support says so.
    const tested =
      !Number.isNaN(each.score) && `picks ${share(each.score)} of its mappings, chance ${share(each.chance)}`;
    return el(
      "li",
      {},
      el("strong", { class: each.label === UNCLEAR ? "quiet" : false }, each.label),
      el("br"),
      el("span", { class: "quiet" }, [tested, each.support, `by ${each.author}`].filter(Boolean).join("; ")),
    );
  };
  return [
    el("h3", {}, "Label"),
    own ? el("ul", { class: "labels" }, ...own.map(line)) : el("p", { class: "quiet" }, "none"),
    hint("what is a label worth?", heads.captions.labels),
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
      ...found.flatMap((each, i) => [
        i ? ", " : "",
        headButton(headName(view.atlas, each.cell), each.cell, handlers),
        ` ${each.similarity.toFixed(2)}`,
      ]),
    ),
    hint(
      "similar in what?",
      "Cosine of the scores on all relations, and likeness of where they look; the mean of the two " +
        "where both are known of this head. A head of which one of these is not known is left out.",
    ),
  ];
}

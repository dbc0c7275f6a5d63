/** The search box and what it finds: heads, relations, pairs of words, behaviours, labels, tokens. */

import { headName } from "./atlas.mjs";
import { button, el, freshId, headButton, relationButton } from "./dom.mjs";
import { count } from "./format.mjs";
import { spoken } from "./measures.mjs";
import { search } from "./words.mjs";

const MOST = 5;
const HEADS = 6;

/**
 * Build the search.
 *
 * @param handlers change(part of the state), open(cell, how), choose(relation index), wanted(): a search begins.
 * @returns box (what is typed), node (what is found), follow(state), sync(view, state).
 */
export function createFinder(handlers) {
  const id = freshId("find");
  const input = el("input", {
    type: "search",
    id,
    placeholder: "Paris, 23.4, capital …",
    on: {
      input: () => {
        handlers.wanted();
        handlers.change({ find: input.value });
      },
    },
  });
  const found = el("div", { class: "found" });
  const status = el("div", { class: "hidden", role: "status" });
  const box = el("div", { class: "control find" }, el("label", { for: id }, "Find"), input);
  const node = el("div", { class: "finder" }, found, status);
  /** @type {any[] | null} */
  let shown = null;
  return {
    ...{ box, node },
    follow({ find }) {
      if (input.value !== find) input.value = find;
    },
    sync(view, { find }) {
      const key = [find, view.reading, view.salience];
      if (shown?.every((each, i) => each === key[i])) return;
      shown = key;
      const groups = find.trim() ? results(view, search(view, find), handlers, find) : [];
      found.replaceChildren(...groups);
      const words = groups.map((each) => each.firstChild.textContent).join(", ");
      status.textContent = find.trim() ? words || "nothing but rows of the table" : "";
    },
  };
}

function results({ atlas }, found, handlers, text) {
  const head = (cell) => headButton(headName(atlas, cell), cell, handlers);
  const headsOf = (cells) => [
    ...cells.slice(0, HEADS).flatMap((cell, i) => [i ? ", " : "", head(cell)]),
    cells.length > HEADS ? ` and ${cells.length - HEADS} more` : "",
  ];
  const groups = [
    ["head", found.heads, (cell) => [head(cell)]],
    ["relation", found.relations, (each) => [relationButton(each, handlers)]],
    [
      "pair",
      [...found.pairs].sort((a, b) => b.heads.length - a.heads.length),
      (each) => [
        `${each.source} → ${each.target} in `,
        relationButton(each.relation, handlers),
        each.heads.length ? ": " : ": no head",
        ...headsOf(each.heads.map(({ cell }) => cell)),
      ],
    ],
    [
      "behaviour",
      found.behaviours,
      (each) => [
        button(spoken(each.name), () => handlers.change({ colour: `looks:${each.name}` }), {
          class: "link",
          title: "Colour the figure by it",
        }),
        ` ${count(
          each.called.reduce((sum, on) => sum + on, 0),
          "head",
        )}`,
      ],
    ],
    ["label", found.labels, (each) => [head(each.cell), ` ${each.label}`]],
    [
      "token",
      found.tokens,
      (each) => [head(each.cell), ` ${each.how} `, el("code", { class: "token" }, each.token)],
    ],
  ];
  const parts = groups.filter(([, entries]) => entries.length).map((group) => block(...group));
  return parts.length
    ? parts
    : [el("p", { class: "quiet" }, `No name, word or label holds “${text.trim()}”; rows of the table may.`)];
}

function block(noun, entries, line) {
  const rest = entries.length - MOST;
  const items = (some) => some.map((each) => el("li", {}, ...line(each)));
  const list = el("ul", {}, ...items(entries.slice(0, MOST)));
  if (rest > 0) {
    const all = button(`${rest.toLocaleString("en")} more`, () => list.replaceChildren(...items(entries)), {
      class: "link",
    });
    list.append(el("li", {}, all));
  }
  return el("div", { class: "found-group" }, el("p", { class: "quiet" }, count(entries.length, noun)), list);
}

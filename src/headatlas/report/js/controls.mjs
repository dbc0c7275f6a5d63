/** What a reader can turn: thresholds, effects, relations and categories, the colour. */

import { calibrationAt } from "./atlas.mjs";
import { button, el, freshId, hint, select, turnOff } from "./dom.mjs";
import { count, plain } from "./format.mjs";
import { formatFragment } from "./state.mjs";

const Q_STOPS = [1e-10, 1e-6, 1e-4, 0.001, 0.01, 0.05, 0.1, 0.2];

/**
 * Build the controls.
 *
 * @param measures those of measuresOf.
 * @param handlers change(part of the state), reset().
 * @returns node, reset (its last button), follow(state).
 */
export function createControls(atlas, measures, handlers) {
  const { change } = handlers;
  const parts = [
    createTau(change),
    createK(atlas, change),
    createQ(atlas, change),
    createSign(change),
    createChooser(atlas, change),
    createColour(measures, change),
  ];
  const reset = button("Reset all", handlers.reset, { class: "reset" });
  const box = el(
    "div",
    { class: "controls" },
    ...parts.map((part) => part.node),
    reset,
    ...parts.map((part) => part.said),
  );
  const node = el(
    "details",
    { class: "settings", role: "group", "aria-label": "What counts, and what is shown" },
    el("summary", {}, "Settings and search"),
    box,
  );
  // Where there is room they are always open, and the line that opens them is not shown.
  const roomy = matchMedia("(min-width: 641px)");
  node.open = roomy.matches;
  roomy.addEventListener("change", () => (node.open = roomy.matches));
  return {
    ...{ node, reset },
    follow(state) {
      parts.forEach((part) => part.follow(state));
      turnOff(reset, formatFragment(atlas, { ...state, scheme: "" }) === "");
    },
  };
}

function slider(className, attributes, input) {
  const id = freshId("slider");
  const output = el("output", { for: id });
  const range = el("input", {
    type: "range",
    id,
    ...attributes,
    on: { input: (event) => input(Number(event.target.value)) },
  });
  const node = (label, why) =>
    el(
      "div",
      { class: `control slider ${className}` },
      el("div", { class: "labels-line" }, el("label", { for: id }, label, output), why),
      range,
    );
  return { node, output, range };
}

function createTau(change) {
  const { node, output, range } = slider("tau", { min: 0, max: 1, step: 0.01 }, (tau) => change({ tau }));
  const why = hint(
    "τ?",
    "A head counts for a relation when it ranks an accepted target in the top k of the vocabulary for " +
      "at least this share of the sources.",
  );
  return {
    node: node("Score ≥ ", why),
    follow({ tau }) {
      range.value = String(tau);
      output.textContent = tau.toFixed(Math.max(2, (plain(tau).split(".")[1] ?? "").length));
    },
  };
}

/** Both k: of all relations but copying, and of copying. */
function createK(atlas, change) {
  const { node, output, range } = slider("k", { min: 1, max: atlas.ceiling, step: 1 }, (k) => change({ k }));
  const id = freshId("k-copy");
  const copy = el("input", {
    type: "number",
    id,
    min: 1,
    max: atlas.ceiling,
    on: {
      change: () => {
        const kCopy = Math.round(Number(copy.value));
        // What is no k leaves the state as it is, and the field shows that again.
        change(kCopy >= 1 && kCopy <= atlas.ceiling ? { kCopy } : {});
      },
    },
  });
  const copying = atlas.scored.some((relation) => relation.copying);
  const box = el(
    "div",
    { class: "control", hidden: !copying },
    el("label", { for: id }, "k of copying"),
    copy,
  );
  return {
    node: el("div", { class: "pair" }, node("Top k = "), box),
    follow({ k, kCopy }) {
      range.value = String(k);
      output.textContent = String(k);
      copy.value = String(kCopy);
    },
  };
}

function createQ(atlas, change) {
  const own = atlas.thresholds.q_max;
  const stops = [...new Set([...Q_STOPS, own])].sort((a, b) => a - b).concat(null);
  const { node, output, range } = slider("q", { min: 0, max: stops.length - 1, step: 1 }, (at) =>
    change({ q: stops[at] }),
  );
  const why = hint(
    "q?",
    "Would the head score as high if the targets were dealt to the sources at random? Of the rows " +
      "with q up to this, about that share or less is expected to be such chance. q says nothing of " +
      "whether the model uses the head.",
  );
  const said = el("p", { class: "said" });
  const words = (kind) => [...atlas.calibrated[kind].keys()].sort((a, b) => a - b).join(", ");
  const copying = atlas.scored.some((relation) => relation.copying);
  const known = `k = ${words("plain")}${copying ? `, copying ${words("copying")}` : ""}`;
  return {
    node: node("q ≤ ", why),
    said,
    follow({ q, k, kCopy }) {
      const place = stops.findIndex((each) => each === null || (q !== null && each >= q));
      range.value = String(q === null ? stops.length - 1 : place);
      const qKnown = calibrationAt(atlas, k, kCopy) !== null;
      const value = q === null ? "any (score alone)" : plain(q);
      output.textContent = qKnown ? value.split(" ")[0] : "–";
      range.setAttribute("aria-valuetext", qKnown ? value : "not known at this k");
      range.disabled = !qKnown;
      said.textContent = qKnown
        ? ""
        : `q is not known at this k, so the score alone counts. It is known at ${known}; for others: ` +
          `headatlas report DIR --q-at K.`;
    },
  };
}

function createSign(change) {
  const name = freshId("sign");
  const choices = [
    ["both", "both"],
    ["promotion", "promotion"],
    ["suppression", "suppression"],
  ];
  const inputs = choices.map(([value]) =>
    el("input", { type: "radio", name, value, on: { change: () => change({ sign: value }) } }),
  );
  const titleId = freshId("sign-title");
  const node = el(
    "div",
    { class: "control", role: "radiogroup", "aria-labelledby": titleId },
    el("span", { class: "label", id: titleId }, "Effect"),
    el(
      "div",
      { class: "segments" },
      ...choices.map(([, label], i) => el("label", {}, inputs[i], el("span", {}, label))),
    ),
  );
  return { node, follow: ({ sign }) => inputs.forEach((input) => (input.checked = input.value === sign)) };
}

/** Which relations and categories. */
function createChooser(atlas, change) {
  const boxes = { relations: new Map(), categories: new Map() };
  /** @type {any} */
  let state = null;
  const toggle = (list, index) => (event) => {
    const now = new Set(state[list]);
    if (event.target.checked) now.add(index);
    else now.delete(index);
    change({ [list]: [...now].sort((a, b) => a - b) });
  };
  const box = (list, index, label) => {
    const input = el("input", { type: "checkbox", on: { change: toggle(list, index) } });
    boxes[list].set(index, input);
    return el("label", { class: "tick" }, input, label);
  };
  const groups = atlas.categories.map((category, index) => {
    const own = atlas.scored.filter((relation) => relation.category === index);
    return el(
      "fieldset",
      {},
      el("legend", {}, box("categories", index, `all of ${category}`)),
      ...own.map((relation) => box("relations", relation.index, relation.title)),
    );
  });
  const summary = el("summary", {});
  const none = button("All relations", () => change({ relations: [], categories: [] }));
  const labelId = freshId("chooser");
  const details = el(
    "details",
    { class: "chooser", on: { keydown: (event) => event.key === "Escape" && shut() } },
    summary,
    el("div", { class: "sheet" }, none, ...groups),
  );
  const shut = () => {
    details.open = false;
    summary.focus();
  };
  document.addEventListener("pointerdown", (event) => {
    if (!details.contains(event.target)) details.open = false;
  });
  return {
    node: el("div", { class: "control" }, el("span", { class: "label", id: labelId }, "Relations"), details),
    follow(now) {
      state = now;
      for (const [index, input] of boxes.categories) input.checked = now.categories.includes(index);
      for (const [index, input] of boxes.relations) {
        const whole = now.categories.includes(atlas.relations[index].category);
        input.checked = whole || now.relations.includes(index);
        input.disabled = whole;
      }
      turnOff(none, !now.relations.length && !now.categories.length);
      summary.textContent = chosenWords(atlas, now) || "all relations";
    },
  };
}

/** What is chosen, in words; empty for everything. */
export function chosenWords(atlas, { relations, categories }) {
  const names = [
    ...categories.map((index) => atlas.categories[index]),
    ...relations.map((index) => atlas.relations[index].title),
  ];
  return names.length > 2 ? `${names[0]} and ${count(names.length - 1, "other")}` : names.join(" and ");
}

function createColour(measures, change) {
  const looks = measures.filter((each) => each.behaviour);
  const whole = measures.filter((each) =>
    ["effective_rank", "copying", "norm_share", "explained"].includes(each.name),
  );
  const changes = measures.filter((each) => ["before", "after", "difference"].includes(each.name));
  const { node, input } = select(
    "Colour by",
    [
      [
        "",
        [
          ["", "automatic"],
          ["categories", "number of categories"],
          ["score", "score of the relations chosen"],
          ["statements", "tested statement"],
        ],
      ],
      ...(looks.length ? [["attention", looks.map((each) => [each.name, each.title])]] : []),
      ...(changes.length
        ? [["comparison", [["change", "change"], ...changes.map((each) => [each.name, each.title])]]]
        : []),
      ...(whole.length ? [["weights", whole.map((each) => [each.name, each.title])]] : []),
    ],
    (colour) => change({ colour }),
  );
  return {
    node,
    follow({ colour }) {
      input.value = colour;
      if (input.selectedIndex < 0) input.value = "";
    },
  };
}

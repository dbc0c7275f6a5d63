/** The criterion, the relation filter and the legend above the panels. */

import { el, freshId } from "./dom.mjs";
import { count, plain } from "./format.mjs";

/**
 * The slider for τ, the choice of criterion and the relation filter.
 *
 * @param change receives the changed part of the state: tau, criterion or relation.
 * @returns node, sync(state).
 */
export function createControls(atlas, change) {
  const initial = atlas.thresholds;
  const tauId = freshId("tau");
  const output = el("output", { for: tauId });
  const slider = el("input", {
    type: "range",
    id: tauId,
    min: 0,
    max: 1,
    step: 0.01,
    on: { input: (event) => change({ tau: Number(event.target.value) }) },
  });
  const reset = el(
    "button",
    {
      type: "button",
      class: "plain",
      on: { click: () => change({ tau: initial.tau, criterion: initial.criterion }) },
    },
    "Reset",
  );
  const criterion = createCriterion(initial, change);
  const relation = createRelationFilter(atlas, change);
  const node = el(
    "div",
    { class: "controls" },
    el("div", { class: "control tau" }, el("label", { for: tauId }, "Score at least τ = ", output), slider),
    criterion.node,
    relation.node,
    reset,
  );
  return {
    node,
    sync(state) {
      slider.value = String(state.tau);
      output.textContent = state.tau.toFixed(Math.max(2, decimals(state.tau)));
      reset.disabled = state.tau === initial.tau && state.criterion === initial.criterion;
      criterion.sync(state.criterion);
      relation.sync(state.relation);
    },
  };
}

function decimals(value) {
  return (plain(value).split(".")[1] ?? "").length;
}

function createCriterion(initial, change) {
  const name = freshId("criterion");
  const choices = [
    ["tau", "score only"],
    ["calibrated", `score and q ≤ ${plain(initial.q_max)}`],
  ];
  const inputs = choices.map(([value]) =>
    el("input", { type: "radio", name, value, on: { change: () => change({ criterion: value }) } }),
  );
  const titleId = freshId("criterion-title");
  const node = el(
    "div",
    { class: "control", role: "radiogroup", "aria-labelledby": titleId },
    el("span", { class: "label", id: titleId }, "Criterion"),
    el("div", {}, ...choices.map(([, label], i) => el("label", { class: "tick" }, inputs[i], label))),
  );
  return {
    node,
    sync: (value) => inputs.forEach((input) => (input.checked = input.value === value)),
  };
}

function createRelationFilter(atlas, change) {
  const id = freshId("relation");
  const groups = atlas.categories.map((category, index) => {
    const own = atlas.scored.filter((relation) => relation.category === index);
    return el(
      "optgroup",
      { label: category },
      el("option", { value: `category:${index}` }, `all ${category} relations`),
      ...own.map((relation) => el("option", { value: String(relation.index) }, relation.title)),
    );
  });
  const select = el(
    "select",
    { id, on: { change: (event) => change({ relation: event.target.value }) } },
    el("option", { value: "" }, "all relations"),
    ...groups,
  );
  const node = el("div", { class: "control" }, el("label", { for: id }, "Show heads of"), select);
  return { node, sync: (value) => (select.value = value) };
}

/** The relation indices that the filter's value names; null for all. */
export function chosenRelations(atlas, value) {
  if (value === "") return null;
  const [kind, index] = value.split(":");
  if (kind !== "category") return new Set([Number(value)]);
  const own = atlas.scored.filter((relation) => relation.category === Number(index));
  return new Set(own.map((relation) => relation.index));
}

/** The discrete legend, with the number of heads per colour. @returns node, sync(levels, nBlank). */
export function createLegend(atlas) {
  const tallies = atlas.categories.map(() => el("span", { class: "count" }));
  const blank = el("span", { class: "count" });
  const item = (attributes, label, tally) =>
    el("li", {}, el("span", { class: "swatch", ...attributes }), el("span", {}, label, " ", tally));
  const items = tallies.map((tally, i) =>
    item({ "data-level": i + 1 }, count(i + 1, "category", "categories"), tally),
  );
  items.push(item({ "data-level": "none" }, "none", blank));
  if (atlas.mapped.includes(0)) items.push(item({ "data-level": "unmapped" }, "layer not mapped", null));
  const node = el(
    "ul",
    { class: "legend", "aria-label": "Colours: in how many categories a head implements a relation" },
    ...items,
  );
  return {
    node,
    sync(levels, nBlank) {
      blank.textContent = count(nBlank, "head");
      levels.forEach((n, i) => (tallies[i].textContent = count(n, "head")));
    },
  };
}

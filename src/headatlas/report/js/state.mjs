/**
 * What the page shows, as one plain object, and as the fragment of its address. Pure functions, no document.
 *
 * A fragment holds only what differs from how the page opens, so a link says what its sender chose:
 * #head=23.4&tau=0.3&relation=country_to_capital. Keys and values that mean nothing to this atlas are dropped.
 */

import { headName, headNamed } from "./atlas.mjs";

/**
 * @typedef {object} State
 * @property {number | null} head cell of the head whose card is open
 * @property {number[]} relations indices of the relations chosen; none: all
 * @property {number[]} categories indices of the categories chosen; none: all
 * @property {number} k of all relations but copying
 * @property {number} kCopy of copying relations
 * @property {number} tau smallest score
 * @property {number | null} q largest q; null: the score alone decides
 * @property {"both" | "promotion" | "suppression"} sign
 * @property {string} colour "" (by choice), "categories", "score", or the name of a measure
 * @property {string} x measure across the scatter
 * @property {string} y measure up the scatter
 * @property {string} c measure that colours the scatter
 * @property {string} find words searched for
 * @property {boolean} below whether the table lists rows below the criterion
 * @property {string} sort column of the table; with a minus the largest first
 * @property {number} step which atlas, from 1, is compared with the next; 0 where there is none
 * @property {boolean} kept whether the table of changes lists what is not shown to differ
 * @property {string} csort column of the table of changes
 * @property {string} scheme "light" or "dark"; "": as the system has it
 */

const whole = (least, most) => (text) => {
  const value = Number(text);
  return /^\d+$/.test(text) && value >= least && value <= most ? value : undefined;
};

const share = (text) => {
  const value = Number(text);
  return text.trim() !== "" && value >= 0 && value <= 1 ? value : undefined;
};

const word = (text) => (/^[\w:.-]{0,80}$/.test(text) ? text : undefined);

const indices = (names) => (text) => {
  const found = text.split(",").map((name) => names.indexOf(name));
  const there = [...new Set(found.filter((index) => index >= 0))].sort((a, b) => a - b);
  return there.length ? there : undefined;
};

/**
 * Key of the fragment → property, how it is read (undefined: not at all) and how it is written.
 *
 * @returns {Record<string, [string, (text: string) => any, (value: any) => string]>}
 */
function fields(atlas) {
  const relations = atlas.relations.map((relation) => (relation.left_out ? null : relation.name));
  const listed = (names) => (value) => value.map((index) => names[index]).join(",");
  return {
    head: ["head", (text) => headNamed(atlas, text) ?? undefined, (cell) => headName(atlas, cell)],
    relation: ["relations", indices(relations), listed(relations)],
    category: ["categories", indices(atlas.categories), listed(atlas.categories)],
    k: ["k", whole(1, atlas.ceiling), String],
    k_copy: ["kCopy", whole(1, atlas.ceiling), String],
    tau: ["tau", share, String],
    q: [
      "q",
      (text) => (text === "any" ? null : share(text)),
      (value) => (value === null ? "any" : String(value)),
    ],
    sign: [
      "sign",
      (text) => (["both", "promotion", "suppression"].includes(text) ? text : undefined),
      String,
    ],
    colour: ["colour", word, String],
    x: ["x", word, String],
    y: ["y", word, String],
    c: ["c", word, String],
    find: ["find", (text) => text.slice(0, 200), String],
    below: ["below", (text) => (text === "1" ? true : undefined), () => "1"],
    sort: ["sort", word, String],
    step: ["step", whole(1, atlas.nSteps), String],
    kept: ["kept", (text) => (text === "1" ? true : undefined), () => "1"],
    csort: ["csort", word, String],
    scheme: ["scheme", (text) => (["light", "dark"].includes(text) ? text : undefined), String],
  };
}

/** How the page opens. @returns {State} */
export function initialState(atlas) {
  const { k, k_copy: kCopy, tau, q_max: q, criterion } = atlas.thresholds;
  return {
    head: null,
    relations: [],
    categories: [],
    k,
    kCopy,
    tau,
    q: criterion === "tau" ? null : q,
    sign: "both",
    colour: "",
    x: "layer",
    y: "score",
    c: "categories",
    find: "",
    below: false,
    sort: "-best",
    step: atlas.nSteps,
    kept: false,
    csort: "-size",
    scheme: "",
  };
}

/** The state that a fragment, with or without its #, describes. @returns {State} */
export function parseFragment(atlas, fragment) {
  /** @type {any} */
  const state = initialState(atlas);
  const known = fields(atlas);
  for (const [key, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (!Object.hasOwn(known, key)) continue;
    const [property, parse] = known[key];
    const value = parse(text);
    if (value !== undefined) state[property] = value;
  }
  return state;
}

/** The fragment of a state, without #; empty for how the page opens. */
export function formatFragment(atlas, state) {
  /** @type {any} */
  const initial = initialState(atlas);
  const parts = [];
  for (const [key, [property, , print]] of Object.entries(fields(atlas))) {
    const value = state[property];
    if (JSON.stringify(value) === JSON.stringify(initial[property])) continue;
    if (value === "" && property !== "colour") continue;
    parts.push(`${key}=${encodeURIComponent(print(value)).replaceAll("%2C", ",").replaceAll("%3A", ":")}`);
  }
  return parts.join("&");
}

/** The thresholds of a state, as `read` takes them. */
export function thresholdsOf(atlas, state) {
  return {
    ...atlas.thresholds,
    k: state.k,
    k_copy: state.kCopy,
    tau: state.tau,
    q_max: state.q ?? atlas.thresholds.q_max,
    criterion: state.q === null ? "tau" : "calibrated",
    sign: state.sign,
  };
}

/** The indices of the relations chosen, by themselves or with their category; null for all. */
export function chosenRelations(atlas, state) {
  if (!state.relations.length && !state.categories.length) return null;
  const own = atlas.scored.filter(
    (relation) => state.relations.includes(relation.index) || state.categories.includes(relation.category),
  );
  return new Set(own.map((relation) => relation.index));
}

/** What the figure is coloured by: what was asked for, else what changed, else the score of a relation chosen alone. */
export function colouredBy(state) {
  if (state.colour !== "") return state.colour;
  if (state.step) return "change";
  return state.relations.length === 1 && !state.categories.length ? "score" : "categories";
}

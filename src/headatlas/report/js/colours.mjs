/** Which colour a head has: classes that the style sheet gives colours, and the legend that explains them. */

import { isMapped } from "./atlas.mjs";
import { changeOfHeads, HEAD_CHANGES } from "./changes.mjs";
import { plain } from "./format.mjs";
import { STATEMENTS, statementOf, strongest } from "./measures.mjs";

/** Steps of a score's scale; its colours are --score-0 … and --down-0 …. */
export const STEPS = 20;

/**
 * @typedef {object} Painted
 * @property {"levels" | "scores" | "values" | "kinds"} kind
 * @property {(string | null)[]} classOf
 * @property {Float64Array | null} value
 * @property {string} title
 * @property {[string, string]} range what the ends of the scale stand for
 * @property {boolean} down whether suppression has a scale of its own
 * @property {any} measure
 * @property {[string, string, number][]} [tally] class, words and number of heads of each kind
 * @property {string} [about] what kinds are of
 * @property {Uint8Array} [marked] heads that a small square marks
 */

/**
 * The class of every head: "level-2", "score-13", "down-4", or null for blank; and what they mean.
 *
 * @param by "categories", "score", "statements", "change", or the name of a measure.
 * @returns {Painted}
 */
export function paint(context, by, measures) {
  const { atlas, reading } = context;
  if (by === "score") return paintScores(context);
  if (by === "statements") return paintStatements(context);
  if (by === "change" && context.step) return paintChanges(context);
  const measure = measures.find((each) => each.name === by);
  if (by === "categories" || !measure) {
    const classOf = Array.from(reading.level, (level) => (level ? `level-${level}` : null));
    return {
      kind: "levels",
      classOf,
      value: null,
      title: "categories",
      range: ["", ""],
      down: false,
      measure: null,
    };
  }
  const value = measure.values(context);
  const range = measure.share ? [0, 1] : extent(value);
  const painted = measure.diverging ? paintDiverging : valuesPaint;
  return {
    ...painted(atlas, { title: measure.title, value, range: /** @type {[number, number]} */ (range) }),
    measure,
  };
}

/** Paint by values around 0: what is below it has the colours of suppression. @returns {Painted} */
function paintDiverging(atlas, { title, value, range }) {
  const most = Math.max(...range.map(Math.abs));
  const size = value.map(Math.abs);
  const painted = valuesPaint(atlas, { title, value: size, range: [0, most] });
  const classOf = painted.classOf.map((name, cell) =>
    name && value[cell] < 0 ? name.replace("score", "down") : name === "score-0" ? null : name,
  );
  return { ...painted, classOf, value, down: true };
}

/**
 * Paint by any values: {title, value [cell], range: [least, most]}.
 *
 * @returns {Painted}
 */
export function valuesPaint(atlas, { title, value, range: [least, most] }) {
  const scale = (own) => (most > least ? Math.min(1, Math.max(0, (own - least) / (most - least))) : 0);
  const classOf = Array.from(value, (own, cell) =>
    isMapped(atlas, cell) && !Number.isNaN(own) ? `score-${Math.round(scale(own) * STEPS)}` : null,
  );
  return {
    kind: "values",
    classOf,
    value,
    title,
    range: [plain(least), plain(most)],
    down: false,
    measure: null,
  };
}

/** @returns {Painted} */
function paintScores(context) {
  const { value, down } = strongest(context);
  const classOf = Array.from(value, (own, cell) => {
    const step = Math.round(own * STEPS);
    return step > 0 ? `${down[cell] ? "down" : "score"}-${step}` : null;
  });
  const { relations } = context.atlas;
  const { chosen } = context;
  const one = chosen?.size === 1 ? relations[[...chosen][0]].title : null;
  const title = one ? `score on ${one}` : chosen ? "best score of the relations chosen" : "best score";
  return { kind: "scores", classOf, value, title, range: ["0", "1"], down: down.includes(1), measure: null };
}

/** @returns {Painted} */
function paintStatements(context) {
  const { atlas } = context;
  const value = Int8Array.from({ length: atlas.nCells }, (_, cell) =>
    isMapped(atlas, cell) ? statementOf(context, cell) : -1,
  );
  const words = STATEMENTS.map(([, each]) => each);
  const about = "the first kind of tested statement that a head has";
  return { ...paintKinds("kind", value, words), title: "tested statement", about };
}

/** @returns {Painted} */
function paintChanges(context) {
  const value = changeOfHeads(context);
  const { a, b } = context.step;
  return {
    ...paintKinds("change", value, HEAD_CHANGES),
    title: `change from ${a} to ${b}`,
    about: "what changed in a head",
    marked: Uint8Array.from(value, (kind) => (kind === 1 || kind === 2 ? 1 : 0)),
  };
}

/** Kinds of heads: `value` is the place of each head's among `words`, -1 for none. */
function paintKinds(scale, value, words) {
  const classOf = Array.from(value, (kind) => (kind < 0 ? null : `${scale}-${kind}`));
  /** @type {[string, string, number][]} */
  const tally = words.map((each, at) => [`${scale}-${at}`, each, value.filter((kind) => kind === at).length]);
  /** @type {Painted} */
  const painted = {
    kind: "kinds",
    classOf,
    value: null,
    title: "",
    range: ["", ""],
    down: false,
    measure: null,
    tally,
  };
  return painted;
}

/** Smallest and largest number. */
export function extent(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return least <= most ? [least, most] : [0, 0];
}

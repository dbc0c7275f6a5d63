/** Which colour a head has: classes that the style sheet gives colours, and the legend that explains them. */

import { isMapped } from "./atlas.mjs";
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
 * @property {[string, number][]} [tally] heads of each kind
 */

/**
 * The class of every head: "level-2", "score-13", "down-4", or null for blank; and what they mean.
 *
 * @param by "categories", "score", or the name of a measure.
 * @returns {Painted}
 */
export function paint(context, by, measures) {
  const { atlas, reading } = context;
  if (by === "score") return paintScores(context);
  if (by === "statements") return paintStatements(context);
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
  return {
    ...valuesPaint(atlas, { title: measure.title, value, range: /** @type {[number, number]} */ (range) }),
    measure,
  };
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
  const classOf = Array.from(value, (kind) => (kind < 0 ? null : `kind-${kind}`));
  /** @type {[string, number][]} */
  const tally = STATEMENTS.map(([, words], at) => [words, value.filter((kind) => kind === at).length]);
  return {
    kind: "kinds",
    classOf,
    value: null,
    title: "tested statement",
    range: ["", ""],
    down: false,
    measure: null,
    tally,
  };
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

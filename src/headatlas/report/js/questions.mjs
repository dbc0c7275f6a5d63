/** Questions as they are typed, and answers as they are shown. Pure functions, no document. */

/** What was typed, as a question: pairs (one a line or between commas), a word, or a text; or what is wrong with it. */
export function parseQuestion(typed) {
  const text = typed.trim();
  if (text === "") return null;
  const parts = text
    .split(/[\n;,]/)
    .map((part) => part.trim())
    .filter((part) => part !== "");
  const pairs = parts.map((part) => part.split(/\s*(?:→|->|=)\s*/));
  if (parts.length && pairs.every((pair) => pair.length === 2 && pair[0] && pair[1])) {
    return { path: "/api/pairs", body: { pairs: pairs.map(([source, target]) => ({ source, target })) } };
  }
  if (parts.some((part) => /\S\s*(→|->)$|^(→|->)\s*\S/.test(part))) {
    return { wrong: "A pair has two sides: France → Paris." };
  }
  if (!/\s/.test(text)) return { path: "/api/word", body: { word: text } };
  return { path: "/api/text", body: { text } };
}

/** A text in which what cannot be seen is an escape. */
export function visible(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (char) => {
    if (char === "\n") return "\\n";
    if (char === "\t") return "\\t";
    return char === "\u200c" || char === "\u200d" ? char : `\\u{${char.codePointAt(0).toString(16)}}`;
  });
}

/** Ranks are exact below this (headatlas.options.MAX_CEILING). */
const CEILING = 250;

/** A rank; a dash for a word that the tokenizer cannot use as a target. */
export function rankText(rank, canBeTarget = true) {
  if (!canBeTarget) return "–";
  return rank === null ? `≥ ${CEILING}` : String(rank);
}

/** A step of colour for a weight of attention: 0 to 4. */
export function weightStep(weight) {
  return [0.02, 0.1, 0.3, 0.6].filter((least) => weight >= least).length;
}

/** Numbers and names as a reader sees them. */

/** A share of sources: three decimals, so that 0.146 does not look like the 0.15 it has not reached. */
export function share(value) {
  return Number.isNaN(value) ? "–" : value.toFixed(3);
}

/** The Wilson interval of hits out of n, as text. */
export function interval(hits, n) {
  const [low, high] = wilson(hits, n);
  return `${low.toFixed(2)}–${high.toFixed(2)}`;
}

const Z = 1.959963984540054;

/** The Wilson 95 % score interval of hits out of n. */
export function wilson(hits, n) {
  const portion = hits / n;
  const z2 = Z * Z;
  const centre = (portion + z2 / (2 * n)) / (1 + z2 / n);
  const half = (Z * Math.sqrt((portion * (1 - portion)) / n + z2 / (4 * n * n))) / (1 + z2 / n);
  // Exactly 0 and 1 at the ends, whatever the rounding.
  return [hits === 0 ? 0 : Math.max(0, centre - half), hits === n ? 1 : Math.min(1, centre + half)];
}

/** A false discovery rate; small ones are only said to be small. */
export function rate(q) {
  if (Number.isNaN(q)) return "–";
  if (q < 0.001) return "< 0.001";
  return q >= 0.9995 ? "1" : q.toFixed(3);
}

/** "1 head", "2 heads", "1,234 heads". */
export function count(n, noun, plural = `${noun}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? noun : plural}`;
}

/** A number without trailing zeros, as settings are written: 0.15, 0.1, 1. */
export function plain(value) {
  return String(Number(value.toPrecision(6)));
}

/** "a", "a and b", "a, b and c". */
export function listed(items) {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`;
}

/** How large a cell is and how the panels are arranged, from the room there is. Pure functions. */

/** Room beside and below a plot for its axes. */
export const MARGIN = { left: 38, top: 3, right: 10, bottom: 34 };
const GAP = 18;
const SIDE_AT = 3;
const MAIN = { widest: 44, least: 150, most: 560 };
const SIDE = { widest: 14, least: 84, most: 240 };

/**
 * Arrange the figure: one large panel, and the others below it in as many columns as stay legible.
 *
 * @param width room in CSS pixels; ratio: device pixels per CSS pixel; zoom: how much larger the large panel is than
 *     the room; nOthers: how many small panels there are.
 * @returns columns, and for the large panel (main) and the others (side) a cell of whole device pixels.
 */
export function arrange(width, ratio, nLayers, nHeads, nOthers, zoom = 1) {
  const inner = (room) => room - MARGIN.left - MARGIN.right;
  const main = cellSize(inner(width) * zoom, ratio, nLayers, nHeads, MAIN, zoom);
  let columns = Math.max(1, Math.min(nOthers, 4));
  const side = (n) => cellSize(inner((width - GAP * (n - 1)) / n), ratio, nLayers, nHeads, SIDE);
  while (columns > 1 && side(columns).width < SIDE_AT) columns -= 1;
  columns = Math.ceil(nOthers / Math.ceil(nOthers / columns)); // rows as even as can be
  return { columns, main, side: side(columns) };
}

/** A cell that fits nLayers across: square, but taller where there are few heads and flatter where many. */
export function cellSize(room, ratio, nLayers, nHeads, limits = MAIN, zoom = 1) {
  const whole = (value) => Math.max(1, Math.floor(value * ratio)) / ratio;
  const width = whole(Math.min(limits.widest * zoom, room / nLayers));
  const least = (limits.least * zoom) / nHeads;
  const most = (limits.most * zoom) / nHeads;
  const height = whole(Math.min(Math.max(width, Math.min(least, 2.4 * width)), Math.max(most, 2)));
  const gap = Math.min(width, height) >= 4 ? Math.max(1, Math.round(ratio)) / ratio : 0;
  return { width, height, gap };
}

/** 0 and sparse round ticks, evenly spaced (1, 2, 5 × a power of ten; 4 of ten or fewer), at least `apart` pixels. */
export function ticks(n, size, apart) {
  const factors = n <= 10 ? [1, 2, 4, 5] : [1, 2, 5];
  const steps = [1, 10, 100, 1000, 10000].flatMap((power) => factors.map((factor) => factor * power));
  const step = steps.find((value) => value * size >= apart) ?? n;
  return Array.from({ length: Math.ceil(n / step) }, (_, at) => at * step);
}

/** Round numbers from `least` to `most`, about `n` of them. */
export function roundTicks(least, most, n = 5) {
  const span = most - least || 1;
  const power = 10 ** Math.floor(Math.log10(span / n));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => span / value <= n) ?? span;
  const out = [];
  for (let i = Math.ceil(least / step - 1e-9); i * step <= most + step * 1e-9; i += 1)
    out.push(Number((i * step).toPrecision(12)));
  return out;
}

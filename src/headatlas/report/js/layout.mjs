/** How large a cell is and how the panels are arranged, from the room there is. Pure functions. */

const AXIS = 44;
const GAP = 18;
const ROW_AT = 5;
const SIDE_AT = 3;
const HEIGHT = { least: 130, most: 460 };

/**
 * Arrange the panels: "row" (all side by side), "focus" (the first one large, the others beside it in two rows) or
 * "stack" (as many columns as stay legible).
 *
 * @param width room in CSS pixels; ratio: device pixels per CSS pixel.
 * @returns kind, columns, and for the first panel and the others a cell of whole device pixels.
 */
export function arrange(width, ratio, nLayers, nHeads, nPanels) {
  const cell = (room) => cellSize(room - AXIS, ratio, nLayers, nHeads);
  const even = (columns) => cell((width - GAP * (columns - 1)) / columns);
  const row = even(nPanels);
  if (row.width >= ROW_AT) return { kind: "row", columns: nPanels, first: row, others: row };
  if (nPanels > 2) {
    const side = Math.ceil((nPanels - 1) / 2);
    const unit = (width - GAP * side) / (side + 2);
    const others = cell(unit);
    if (others.width >= SIDE_AT) return { kind: "focus", columns: side, first: cell(2 * unit), others };
  }
  let columns = Math.max(1, Math.min(nPanels - 1, 3));
  while (columns > 1 && even(columns).width < ROW_AT) columns -= 1;
  const stacked = even(columns);
  return { kind: "stack", columns, first: stacked, others: stacked };
}

/** A cell that fits nLayers across: square, but taller where there are few heads and flatter where many. */
export function cellSize(room, ratio, nLayers, nHeads) {
  const whole = (value) => Math.max(1, Math.floor(value * ratio)) / ratio;
  const width = whole(Math.min(26, room / nLayers));
  const least = HEIGHT.least / nHeads;
  const most = HEIGHT.most / nHeads;
  const height = whole(Math.min(Math.max(width, Math.min(least, 2.4 * width)), Math.max(most, 2)));
  const gap = Math.min(width, height) >= 5 ? Math.max(1, Math.round(ratio)) / ratio : 0;
  return { width, height, gap };
}

/** 0, sparse round ticks (1, 2 or 5 × a power of ten) and n - 1, at least `apart` pixels from each other. */
export function ticks(n, size, apart) {
  let step = 1;
  for (let power = 1; step * size < apart; power *= 10) {
    step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value * size >= apart) ?? step;
    if (power > n) break;
  }
  const last = n - 1;
  const near = Math.max(step / 2, apart / size);
  const places = [0];
  for (let value = step; last - value >= near; value += step) places.push(value);
  if (last * size >= apart) places.push(last);
  return places;
}

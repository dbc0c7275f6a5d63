/**
 * The figure's panels: one SVG each, with one path per colour. Vector shapes stay crisp at any zoom and in print,
 * and redrawing 80 × 64 heads in five panels means replacing a few path strings: cells of one colour that lie on
 * each other are one rectangle, and lines of the ground's colour part them.
 */

import { isMapped } from "./atlas.mjs";
import { el, freshId, svg } from "./dom.mjs";
import { MARGIN, ticks } from "./layout.mjs";

/**
 * Build a panel.
 *
 * @param options title; button (a node that stands for the title), helpId, handlers: point(cell or null, anchor, how):
 *     a head is looked at; open(cell, how): it is chosen; close().
 * @returns node, draw(classOf, marked), resize(cell), mark(which, cell), setTitle(text), setCount(text).
 */
export function createPanel(atlas, { title, helpId, handlers, level = "h3" }) {
  const titleId = freshId("panel");
  const name = el("span", {}, title);
  const counter = el("span", { class: "count" });
  const plate = svg("rect", { class: "plate" });
  const ground = svg("path", { class: "ground" });
  const hatchId = freshId("hatch");
  const unmapped = svg("path", { class: "unmapped", fill: `url(#${hatchId})` });
  const colours = svg("g");
  const grid = svg("path", { class: "grid" });
  const called = svg("path", { class: "called" });
  const axes = svg("g", { class: "axes", "aria-hidden": "true" });
  const marks = { cursor: svg("rect", { class: "cursor" }), pin: svg("rect", { class: "pin" }) };
  const plot = svg("g", {}, plate, ground, unmapped, colours, grid, called, marks.pin, marks.cursor);
  const canvas = svg(
    "svg",
    {
      class: "heatmap",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "heatmap",
      "aria-labelledby": titleId,
      "aria-describedby": helpId,
    },
    hatching(hatchId),
    plot,
    axes,
  );
  const frame = el("div", { class: "frame" }, canvas);
  const node = el("div", { class: "panel" }, el(level, { id: titleId }, name, " ", counter), frame);
  const panel = {
    ...{ atlas, plate, ground, unmapped, colours, grid, called, axes, marks, plot, canvas },
    size: null,
    drawn: null,
  };
  listen(panel, handlers);
  return {
    node,
    frame,
    canvas,
    draw: (classOf, marked = null) => drawColours(panel, classOf, marked),
    resize: (size) => resizePanel(panel, size),
    mark: (which, cell) => placeMark(panel, which, cell),
    anchorOf: (cell) => anchorOf(panel, cell),
    focus: () => canvas.focus(),
    setTitle: (text) => (name.textContent = text),
    setCount: (text) => (counter.textContent = text),
  };
}

function hatching(id) {
  const size = 5;
  const line = svg("path", { class: "hatch", d: `M0 0V${size}` });
  const turned = {
    id,
    width: size,
    height: size,
    patternUnits: "userSpaceOnUse",
    patternTransform: "rotate(45)",
  };
  return svg("defs", {}, svg("pattern", turned, line));
}

function place(panel, cell) {
  const { width, height } = panel.size;
  const { nHeads } = panel.atlas;
  const layer = Math.floor(cell / nHeads);
  return { x: layer * width, y: (nHeads - 1 - (cell % nHeads)) * height };
}

/** One path per class; runs of a class within a layer are one rectangle. */
function drawColours(panel, classOf, marked) {
  panel.drawn = { classOf, marked };
  if (!panel.size) return;
  const { nLayers, nHeads } = panel.atlas;
  const { width, height } = panel.size;
  const shapes = new Map();
  for (let layer = 0; layer < nLayers; layer += 1) {
    let head = 0;
    while (head < nHeads) {
      const name = classOf[layer * nHeads + head];
      const first = head;
      while (head < nHeads && classOf[layer * nHeads + head] === name) head += 1;
      if (!name) continue;
      const tall = (head - first) * height;
      if (!shapes.has(name)) shapes.set(name, []);
      shapes.get(name).push(`M${layer * width} ${(nHeads - head) * height}h${width}v${tall}h${-width}z`);
    }
  }
  const paths = [...shapes].map(([name, parts]) => {
    const [scale, step] = name.split("-");
    return svg("path", { class: "level", [`data-${scale}`]: step, d: parts.join("") });
  });
  panel.colours.replaceChildren(...paths);
  panel.called.setAttribute("d", marked ? dots(panel, marked) : "");
}

/** A small square in the corner of the heads that pass, where colours say something else. */
function dots(panel, marked) {
  const { width, height, gap } = panel.size;
  // On smaller cells they would cover the colour.
  if (Math.min(width, height) < 6) return "";
  const side = Math.max(2, Math.min(width, height) * 0.26);
  const parts = [];
  for (let cell = 0; cell < panel.atlas.nCells; cell += 1) {
    if (!marked[cell]) continue;
    const { x, y } = place(panel, cell);
    const [right, top] = [x + width - gap - side - 1, y + 1];
    parts.push(`M${right} ${top}h${side}v${side}h${-side}z`);
  }
  return parts.join("");
}

function resizePanel(panel, size) {
  panel.size = size;
  const { nLayers, nHeads, mapped } = panel.atlas;
  const width = nLayers * size.width;
  const height = nHeads * size.height;
  panel.canvas.setAttribute("width", MARGIN.left + width + MARGIN.right);
  panel.canvas.setAttribute("height", MARGIN.top + height + MARGIN.bottom);
  panel.plot.setAttribute("transform", `translate(${MARGIN.left} ${MARGIN.top})`);
  panel.plate.setAttribute("width", width);
  panel.plate.setAttribute("height", height);
  const columns = (wanted) =>
    Array.from(mapped, (done, layer) =>
      Boolean(done) === wanted ? `M${layer * size.width} 0h${size.width}v${height}h${-size.width}z` : "",
    ).join("");
  panel.ground.setAttribute("d", columns(true));
  panel.unmapped.setAttribute("d", columns(false));
  drawGrid(panel, width, height);
  drawAxes(panel, width, height);
  if (panel.drawn) drawColours(panel, panel.drawn.classOf, panel.drawn.marked);
  for (const which of Object.keys(panel.marks)) placeMark(panel, which, panel.marks[which].cell ?? null);
}

function drawGrid(panel, width, height) {
  const { nLayers, nHeads } = panel.atlas;
  const { size, grid } = panel;
  const lines = [];
  if (size.gap) {
    for (let layer = 1; layer <= nLayers; layer += 1)
      lines.push(`M${layer * size.width - size.gap} 0h${size.gap}v${height}h${-size.gap}z`);
    for (let head = 1; head <= nHeads; head += 1)
      lines.push(`M0 ${head * size.height - size.gap}h${width}v${size.gap}h${-width}z`);
  }
  grid.setAttribute("d", lines.join(""));
}

function drawAxes(panel, width, height) {
  const { nLayers, nHeads } = panel.atlas;
  const { size, axes } = panel;
  const { left, top } = MARGIN;
  const labels = [];
  for (const layer of ticks(nLayers, size.width, 26)) {
    const x = left + (layer + 0.5) * size.width - size.gap / 2;
    labels.push(svg("text", { x, y: top + height + 13, "text-anchor": "middle" }, String(layer)));
  }
  for (const head of ticks(nHeads, size.height, 18)) {
    const y = top + (nHeads - 0.5 - head) * size.height - size.gap / 2;
    labels.push(svg("text", { x: left - 5, y, "text-anchor": "end", dy: "0.35em" }, String(head)));
  }
  const middle = top + height / 2;
  labels.push(
    svg(
      "text",
      { class: "axis", x: left + width / 2, y: top + height + 29, "text-anchor": "middle" },
      "Layer",
    ),
    svg(
      "text",
      { class: "axis", transform: `translate(11 ${middle}) rotate(-90)`, "text-anchor": "middle" },
      "Head",
    ),
  );
  axes.replaceChildren(...labels);
}

function placeMark(panel, which, cell) {
  const mark = panel.marks[which];
  mark.cell = cell;
  mark.classList.toggle("on", cell !== null);
  if (cell === null || !panel.size) return;
  const { width, height, gap } = panel.size;
  const { x, y } = place(panel, cell);
  // Small cells get a frame around them, so that it does not cover the colour.
  mark.setAttribute("x", x - 1.5);
  mark.setAttribute("y", y - 1.5);
  mark.setAttribute("width", width - gap + 3);
  mark.setAttribute("height", height - gap + 3);
}

function listen(panel, handlers) {
  const { canvas } = panel;
  /** @type {number | null} */
  let focused = null;
  /** @type {number | null} */
  let under = null;
  const follow = (event) => {
    under = cellAt(panel, event);
    handlers.point(under, under === null ? null : anchorOf(panel, under), "pointer");
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") follow(event);
  });
  canvas.addEventListener("pointerdown", follow);
  canvas.addEventListener("pointerleave", () => handlers.point(null, null, "pointer"));
  canvas.addEventListener("click", () => {
    // A click's coordinates may be rounded; the head meant is the one that was outlined.
    if (under === null) return;
    focused = under;
    handlers.open(under, "pointer");
  });
  const look = (cell) => {
    focused = cell;
    handlers.point(cell, anchorOf(panel, cell), "keys");
  };
  canvas.addEventListener("focus", () => {
    // A click focuses too; the pointer has already said which head is meant.
    if (canvas.matches(":focus-visible")) look(focused ?? firstShown(panel));
  });
  canvas.addEventListener("blur", () => handlers.point(null, null, "keys"));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const from = focused ?? firstShown(panel);
    if (event.key === "Enter" || event.key === " ") handlers.open(from, "keys");
    else if (event.key === "Escape") handlers.close();
    else {
      const next = step(panel, from, event.key);
      if (next === null) return;
      look(next);
    }
    event.preventDefault();
  });
}

function isShown(panel, cell) {
  const { classOf, marked } = panel.drawn;
  return marked ? marked[cell] > 0 : classOf[cell] !== null;
}

function firstShown(panel) {
  for (let cell = 0; cell < panel.atlas.nCells; cell += 1) if (isShown(panel, cell)) return cell;
  return 0;
}

/** Where a key leads from a head; null if it is not a key of the panel. */
function step(panel, cell, key) {
  const { nLayers, nHeads, nCells } = panel.atlas;
  const layer = Math.floor(cell / nHeads);
  const head = cell % nHeads;
  const to = (l, h) => Math.min(nLayers - 1, Math.max(0, l)) * nHeads + Math.min(nHeads - 1, Math.max(0, h));
  const seek = (direction) => {
    for (let next = cell + direction; next >= 0 && next < nCells; next += direction) {
      if (isShown(panel, next)) return next;
    }
    return cell;
  };
  const moves = {
    ArrowLeft: () => to(layer - 1, head),
    ArrowRight: () => to(layer + 1, head),
    ArrowUp: () => to(layer, head + 1),
    ArrowDown: () => to(layer, head - 1),
    Home: () => to(0, head),
    End: () => to(nLayers - 1, head),
    PageUp: () => seek(-1),
    PageDown: () => seek(1),
  };
  return moves[key] ? moves[key]() : null;
}

function cellAt(panel, event) {
  const { nLayers, nHeads } = panel.atlas;
  const { width, height } = panel.size;
  const bounds = panel.canvas.getBoundingClientRect();
  const layer = Math.floor((event.clientX - bounds.left - MARGIN.left) / width);
  const fromTop = Math.floor((event.clientY - bounds.top - MARGIN.top) / height);
  if (layer < 0 || layer >= nLayers || fromTop < 0 || fromTop >= nHeads) return null;
  return layer * nHeads + (nHeads - 1 - fromTop);
}

/** The rectangle of a head on the screen, and where its panel ends, for the tooltip. */
function anchorOf(panel, cell) {
  const bounds = panel.canvas.getBoundingClientRect();
  const { x, y } = place(panel, cell);
  const { width, height } = panel.size;
  const left = bounds.left + MARGIN.left + x;
  const top = bounds.top + MARGIN.top + y;
  return { left, top, right: left + width, bottom: top + height, below: bounds.bottom };
}

/** Heads of unmapped layers have no colour. */
export function maskOf(atlas, classOf, keep) {
  return classOf.map((name, cell) => (name !== null && keep(cell) && isMapped(atlas, cell) ? name : null));
}

/** All heads as points: any two measures as axes, a third as colour. */

import { extent, paint } from "./colours.mjs";
import { el, freshId, select, svg } from "./dom.mjs";
import { plain } from "./format.mjs";
import { roundTicks } from "./layout.mjs";

const SIZE = { left: 52, right: 12, top: 10, bottom: 40, height: 360 };
const NEAR = 18;

/**
 * Build the scatter.
 *
 * @param handlers change(part of the state), point(cell or null, anchor, how), open(cell, how), close().
 * @returns node, drawing, follow(state), sync(view), mark(which, cell), resize().
 */
export function createScatter(atlas, measures, handlers) {
  const choices = [["", measures.map((each) => [each.name, each.title])]];
  const x = select("Across", choices, (value) => handlers.change({ x: value }));
  const y = select("Up", choices, (value) => handlers.change({ y: value }));
  const c = select(
    "Colour",
    [
      [
        "",
        [
          ["categories", "number of categories"],
          ["best", "best score, either effect"],
        ],
      ],
      ...choices,
    ],
    (value) => handlers.change({ c: value }),
  );
  const titleId = freshId("scatter");
  const points = svg("g");
  const axes = svg("g", { class: "axes", "aria-hidden": "true" });
  const marks = {
    cursor: svg("circle", { class: "cursor", r: 6 }),
    pin: svg("circle", { class: "pin", r: 7 }),
  };
  const canvas = svg(
    "svg",
    {
      class: "scatter",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "scatter plot",
      "aria-labelledby": titleId,
    },
    axes,
    points,
    marks.pin,
    marks.cursor,
  );
  const scale = el("p", { class: "quiet" });
  const drawing = el("div", { class: "drawing" }, canvas, scale);
  const node = el(
    "section",
    { "aria-labelledby": titleId },
    el("h2", { id: titleId }, "All heads, two measures"),
    el("div", { class: "toolbar" }, x.node, y.node, c.node),
    drawing,
  );
  /** @type {any} */
  const plot = {
    ...{ atlas, measures, canvas, axes, points, marks, scale },
    places: null,
    order: [],
    shown: null,
  };
  listen(plot, handlers);
  return {
    ...{ node, drawing },
    follow(state) {
      for (const [{ input }, wanted, otherwise] of [
        [x, state.x, "layer"],
        [y, state.y, "score"],
        [c, state.c, "categories"],
      ]) {
        input.value = wanted;
        if (input.selectedIndex < 0) input.value = otherwise;
      }
    },
    sync(view) {
      const wanted = { x: x.input.value, y: y.input.value, c: c.input.value };
      const last = plot.shown;
      const same = ["reading", "about", "step"].every((part) => last?.view[part] === view[part]);
      if (same && JSON.stringify(last.wanted) === JSON.stringify(wanted)) return;
      plot.shown = { view, wanted };
      draw(plot);
    },
    resize: () => plot.shown && draw(plot),
    mark: (which, cell) => placeMark(plot, which, cell),
  };
}

function draw(plot) {
  const { atlas, canvas, measures, shown } = plot;
  const { view, wanted } = shown;
  const width = Math.max(260, canvas.parentNode.clientWidth);
  canvas.setAttribute("width", width);
  canvas.setAttribute("height", SIZE.height);
  const across = axisOf(measures, wanted.x, view, SIZE.left, width - SIZE.right);
  const up = axisOf(measures, wanted.y, view, SIZE.height - SIZE.bottom, SIZE.top);
  const painted = paint(view, wanted.c === "best" ? "score" : wanted.c, measures);
  plot.places = { x: across.values.map(across.place), y: up.values.map(up.place) };
  plot.order = Array.from({ length: atlas.nCells }, (_, cell) => cell)
    .filter((cell) => Number.isFinite(plot.places.x[cell] + plot.places.y[cell]))
    .sort((a, b) => plot.places.x[a] - plot.places.x[b] || plot.places.y[b] - plot.places.y[a]);
  drawPoints(plot, painted);
  drawAxes(plot, across, up, width);
  plot.scale.textContent =
    painted.kind === "levels"
      ? "Colour: number of categories, as in the figure."
      : `Colour: ${painted.title}, from ${painted.range[0]} (pale) to ` +
        `${painted.range[1]}${painted.down ? `; orange: ${painted.measure ? "lower" : "suppression"}` : ""}.`;
  for (const which of Object.keys(plot.marks)) placeMark(plot, which, plot.marks[which].cell ?? null);
}

function axisOf(measures, name, view, from, to) {
  const measure = measures.find((each) => each.name === name);
  const values = measure.values(view);
  const [least, most] = measure.share ? [0, 1] : extent(values);
  const span = most - least || 1;
  const place = (value) => from + ((to - from) * (value - least)) / span;
  return { values, place, title: measure.title, ticks: roundTicks(least, most, 6) };
}

/** One path per colour: blank ones first, strong ones last. */
function drawPoints(plot, painted) {
  const r = plot.order.length > 2000 ? 2.2 : 3.6;
  const shapes = new Map();
  for (const cell of plot.order) {
    const name = painted.classOf[cell] ?? "level-none";
    if (!shapes.has(name)) shapes.set(name, []);
    const [x, y] = [plot.places.x[cell] - r, plot.places.y[cell]];
    shapes
      .get(name)
      .push(`M${x.toFixed(1)} ${y.toFixed(1)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`);
  }
  const rank = (name) => (name === "level-none" ? -1 : Number(name.split("-")[1]));
  const names = [...shapes.keys()].sort((a, b) => rank(a) - rank(b));
  plot.points.replaceChildren(
    ...names.map((name) => {
      const [scale, step] = name.split("-");
      return svg("path", { class: "point", [`data-${scale}`]: step, d: shapes.get(name).join("") });
    }),
  );
}

function drawAxes(plot, across, up, width) {
  const bottom = SIZE.height - SIZE.bottom;
  const parts = [
    svg("path", { class: "frame-line", d: `M${SIZE.left} ${SIZE.top}V${bottom}H${width - SIZE.right}` }),
    svg(
      "text",
      { class: "axis", x: (SIZE.left + width) / 2, y: SIZE.height - 6, "text-anchor": "middle" },
      across.title,
    ),
    svg(
      "text",
      {
        class: "axis",
        transform: `translate(12 ${(SIZE.top + bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle",
      },
      up.title,
    ),
  ];
  for (const value of across.ticks) {
    parts.push(
      svg("text", { x: across.place(value), y: bottom + 15, "text-anchor": "middle" }, plain(value)),
    );
  }
  for (const value of up.ticks) {
    parts.push(
      svg("text", { x: SIZE.left - 6, y: up.place(value), "text-anchor": "end", dy: "0.35em" }, plain(value)),
      svg("path", { class: "guide", d: `M${SIZE.left} ${up.place(value)}H${width - SIZE.right}` }),
    );
  }
  plot.axes.replaceChildren(...parts);
}

function placeMark(plot, which, cell) {
  const mark = plot.marks[which];
  mark.cell = cell;
  const there =
    cell !== null && plot.places !== null && Number.isFinite(plot.places.x[cell] + plot.places.y[cell]);
  mark.classList.toggle("on", there);
  if (!there) return;
  mark.setAttribute("cx", plot.places.x[cell]);
  mark.setAttribute("cy", plot.places.y[cell]);
}

function listen(plot, handlers) {
  const { canvas } = plot;
  /** @type {number | null} */
  let under = null;
  /** @type {any} */
  let focused = null;
  const look = (cell, how) => handlers.point(cell, cell === null ? null : anchorOf(plot, cell), how);
  const follow = (event) => {
    under = nearest(plot, event);
    look(under, "pointer");
  };
  canvas.addEventListener("pointermove", (event) => event.pointerType !== "touch" && follow(event));
  canvas.addEventListener("pointerdown", follow);
  canvas.addEventListener("pointerleave", () => look(null, "pointer"));
  canvas.addEventListener("click", () => under !== null && handlers.open(under, "pointer"));
  canvas.addEventListener("focus", () => {
    if (!canvas.matches(":focus-visible") || !plot.order.length) return;
    focused = plot.order.includes(focused) ? focused : plot.order[0];
    look(focused, "keys");
  });
  canvas.addEventListener("blur", () => look(null, "keys"));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !plot.order.length) return;
    const at = Math.max(0, plot.order.indexOf(focused));
    const last = plot.order.length - 1;
    const moves = {
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      Home: 0,
      End: last,
    };
    if (event.key in moves) {
      focused = plot.order[Math.min(last, Math.max(0, moves[event.key]))];
      look(focused, "keys");
    } else if (event.key === "Enter" || event.key === " ") handlers.open(plot.order[at], "keys");
    else if (event.key === "Escape") handlers.close();
    else return;
    event.preventDefault();
  });
}

function nearest(plot, event) {
  const bounds = plot.canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
  let best = null;
  let least = NEAR ** 2;
  for (const cell of plot.order) {
    const far = (plot.places.x[cell] - x) ** 2 + (plot.places.y[cell] - y) ** 2;
    if (far > least) continue;
    least = far;
    best = cell;
  }
  return best;
}

function anchorOf(plot, cell) {
  const bounds = plot.canvas.getBoundingClientRect();
  const [x, y] = [bounds.left + plot.places.x[cell], bounds.top + plot.places.y[cell]];
  return { left: x - 6, right: x + 6, top: y - 6, bottom: y + 6, below: bounds.bottom };
}

/** The figure: one large panel, small ones for the categories, what the colours mean, and how large it all is. */

import { countHeads } from "./atlas.mjs";
import { paint, STEPS } from "./colours.mjs";
import { button, el, freshId, hint, saveButtons, turnOff } from "./dom.mjs";
import { count, plain } from "./format.mjs";
import { arrange } from "./layout.mjs";
import { createPanel, maskOf } from "./panels.mjs";

const ZOOMS = [1, 1.5, 2, 3, 4, 6];

/**
 * Build the figure.
 *
 * @param handlers as of a panel; also choose(category index): a small panel's title is clicked; save(kind).
 * @returns node, sync(view), mark(cell), pin(cell), focus(): view has reading, painted, only, categories (chosen).
 */
export function createFigure(atlas, handlers) {
  const help = el(
    "p",
    { class: "hidden", id: freshId("keys") },
    "Arrow keys move from head to head, Page Up and Page Down between coloured heads, Enter opens the " +
      "head's card, Escape closes it.",
  );
  const main = createPanel(atlas, { title: "", helpId: help.id, handlers });
  main.node.classList.add("main-panel");
  const sides = atlas.categories.map((category) =>
    createPanel(atlas, { title: category, helpId: help.id, handlers }),
  );
  const grid = el("div", { class: "side-panels" }, ...sides.map((panel) => panel.node));
  const legend = createLegend(atlas);
  const zoom = createZoom(main, () => resize());
  const caption = el("p", { class: "quiet caption" });
  main.node.append(zoom.node);
  const drawing = el("div", { class: "drawing" }, legend.node, main.node, grid, caption);
  const node = el("div", { class: "figure" }, drawing, saveButtons("figure", handlers.save), help);
  const resize = () => {
    const width = drawing.clientWidth;
    if (!width) return;
    const ratio = Math.max(1, window.devicePixelRatio || 1);
    const plan = arrange(width, ratio, atlas.nLayers, atlas.nHeads, sides.length, zoom.factor());
    grid.style.setProperty("--columns", String(plan.columns));
    main.resize(plan.main);
    sides.forEach((panel) => panel.resize(plan.side));
  };
  return {
    ...{ node, drawing, resize },
    sync(view) {
      drawAll(atlas, { main, sides, grid, legend }, view);
      caption.textContent = captionOf(atlas, view.reading);
    },
    mark: (cell) => [main, ...sides].forEach((panel) => panel.mark("cursor", cell)),
    pin: (cell) => [main, ...sides].forEach((panel) => panel.mark("pin", cell)),
    focus: () => main.focus(),
  };
}

function drawAll(atlas, { main, sides, grid, legend }, view) {
  const { reading, painted, only, chosen } = view;
  const counts = countHeads(atlas, reading, only);
  const levels = painted.kind === "levels";
  const shown = (heads) => (cell) =>
    reading.level[cell] > 0 && (!heads || heads[cell] > 0) && (!only || only[cell] > 0);
  const passes = Uint8Array.from({ length: atlas.nCells }, (_, cell) => (shown(null)(cell) ? 1 : 0));
  // Values from elsewhere have no criterion that a head could pass.
  const elsewhere = painted.kind === "values" && !painted.measure;
  const marked = painted.measure?.behaviour ? painted.measure.behaviour.called : elsewhere ? null : passes;
  if (painted.kind === "kinds") main.draw(painted.classOf, painted.marked);
  else if (levels) main.draw(maskOf(atlas, painted.classOf, shown(null)));
  else main.draw(painted.classOf, marked);
  const about = view.about ? ` of ${view.about}` : "";
  main.setTitle(levels ? `Heads${about} by number of categories` : `Heads by ${painted.title}`);
  main.setCount(
    painted.measure?.behaviour
      ? count(sum(marked), "head called", "heads called")
      : count(countOf(painted, counts[0].total), "head"),
  );
  const asked = atlas.categories.map(
    (_, at) => !chosen || atlas.scored.some((each) => each.category === at && chosen.has(each.index)),
  );
  // A measure of whole heads has no parts by category, and one category is the whole.
  grid.hidden = ["values", "kinds"].includes(painted.kind) || asked.filter(Boolean).length < 2;
  sides.forEach((panel, at) => {
    panel.node.hidden = !asked[at];
    if (grid.hidden || !asked[at]) return;
    if (levels) panel.draw(maskOf(atlas, painted.classOf, shown(reading.member[at])));
    else panel.draw(paintCategory(view, at), maskedBy(passes, reading.member[at]));
    panel.setCount(count(counts[at + 1].total, "head"));
  });
  legend.sync(painted, counts[0].levels, atlas.nMapped - counts[0].total, view);
}

/** How many heads a painting is about. */
function countOf(painted, passing) {
  if (painted.tally) return tallied(painted);
  if (painted.kind === "values" && !painted.measure) return painted.classOf.filter(Boolean).length;
  return passing;
}

function tallied({ tally }) {
  return tally.reduce((all, [, , n]) => all + n, 0);
}

/** Scores of the relations of one category. */
function paintCategory(view, at) {
  const own = view.atlas.scored.filter(
    (each) => each.category === at && (view.chosen?.has(each.index) ?? true),
  );
  return paint({ ...view, chosen: new Set(own.map((each) => each.index)) }, "score", []).classOf;
}

function maskedBy(cells, mask) {
  return cells.map((on, cell) => on & mask[cell]);
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/** The line under the panels; it follows the criterion. */
function captionOf(atlas, reading) {
  const { k, k_copy: kCopy, tau, q_max: q, sign } = reading.thresholds;
  const sure = reading.alone ? "" : ` and q ≤ ${plain(q)}`;
  const effects = sign === "both" ? "" : `; ${sign} alone`;
  const rule = `k = ${k} (copying ${kCopy}), score ≥ ${plain(tau)}${sure}${effects}`;
  const { caption, rule: own } = atlas.data;
  // The coverage of the caption is that of the page as it opens; the header has today's.
  return caption.slice(caption.indexOf(atlas.data.model)).replace(own, () => rule);
}

const BLANK =
  "A blank cell is not an idle head: none of the relations asked passes the criterion there. Categories with more " +
  "relations have more chances.";

/** What the colours mean, with the number of heads per colour where they are few. */
function createLegend(atlas) {
  const node = el("div", { class: "legend-line" });
  const swatch = (attributes) => el("span", { class: "swatch", ...attributes });
  const item = (attributes, label, tally) =>
    el("li", {}, swatch(attributes), el("span", {}, label, " ", el("span", { class: "count" }, tally)));
  const list = (label, items) => el("ul", { class: "legend", "aria-label": label }, ...items);
  const unmapped = atlas.mapped.includes(0)
    ? [item({ "data-level": "unmapped" }, "layer not mapped", "")]
    : [];
  const scale = (name, [least, most]) =>
    el(
      "span",
      { class: "scale" },
      least,
      el(
        "span",
        { class: "ramp" },
        ...Array.from({ length: STEPS + 1 }, (_, i) => swatch({ [`data-${name}`]: i })),
      ),
      most,
    );
  const kinds = (painted) => [
    list(`Colours: ${painted.about}`, [
      ...painted.tally.map(([name, words, n]) => {
        const [scale, step] = name.split("-");
        return item({ [`data-${scale}`]: step }, words, count(n, "head"));
      }),
      item({ "data-level": "none" }, "none", count(atlas.nMapped - tallied(painted), "head")),
      ...unmapped,
      painted.marked && el("li", {}, el("span", { class: "dot" }), "lost"),
    ]),
  ];
  return {
    node,
    sync(painted, levels, nBlank, view) {
      if (painted.kind === "kinds") {
        node.replaceChildren(...kinds(painted));
        return;
      }
      node.replaceChildren(
        ...(painted.kind === "levels"
          ? [
              list("Colours: in how many categories a head implements a relation", [
                ...levels.map((n, i) =>
                  item({ "data-level": i + 1 }, count(i + 1, "category", "categories"), count(n, "head")),
                ),
                item({ "data-level": "none" }, "none", count(nBlank, "head")),
                ...unmapped,
                el("li", {}, hint("blank?", BLANK)),
              ]),
            ]
          : legendOfScale(painted, scale, view)),
      );
    },
  };
}

function legendOfScale(painted, scale, view) {
  if (painted.kind === "values") {
    const called = painted.measure?.behaviour
      ? [el("span", { class: "key" }, el("span", { class: "dot" }), "called: clearly more than expected")]
      : [];
    const why = painted.measure?.behaviour && view.heads.captions.behaviour;
    return [
      el("span", {}, painted.title),
      ...(painted.down
        ? [el("span", {}, "lower"), scale("down", painted.range), el("span", {}, "higher")]
        : []),
      scale("score", painted.range),
      ...called,
      why ? hint("what is this?", why) : null,
    ].filter(Boolean);
  }
  return [
    el("span", {}, painted.down ? "promotes" : painted.title),
    scale("score", painted.range),
    ...(painted.down ? [el("span", {}, "suppresses"), scale("down", painted.range)] : []),
    el("span", { class: "key" }, el("span", { class: "dot" }), "passes the criterion"),
  ];
}

/** Larger and smaller, by buttons and by two fingers. */
function createZoom(main, change) {
  let at = 0;
  let fine = 1;
  const set = (factor) => {
    fine = Math.min(ZOOMS[ZOOMS.length - 1], Math.max(1, factor));
    at = ZOOMS.findLastIndex((each) => each <= fine + 1e-6);
    turnOff(smaller, fine <= 1);
    turnOff(larger, fine >= ZOOMS[ZOOMS.length - 1]);
    main.node.classList.toggle("zoomed", fine > 1);
    change();
  };
  const smaller = button("−", () => set(ZOOMS[fine > ZOOMS[at] ? at : Math.max(0, at - 1)]), {
    "aria-label": "Smaller figure",
    "aria-disabled": "true",
  });
  const larger = button("+", () => set(ZOOMS[Math.min(ZOOMS.length - 1, at + 1)]), {
    "aria-label": "Larger figure",
  });
  pinch(main.frame, () => fine, set);
  return {
    node: el("div", { class: "buttons", role: "group", "aria-label": "Size of the figure" }, smaller, larger),
    factor: () => fine,
  };
}

/** Two fingers on the frame change the factor; what is between them stays between them. */
function pinch(frame, factor, set) {
  const fingers = new Map();
  /** @type {{far: number, x: number, factor: number} | null} */
  let start = null;
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return { far: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY), x: (a.clientX + b.clientX) / 2 };
  };
  frame.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) start = { ...apart(), factor: factor() };
  });
  frame.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, event);
    if (fingers.size !== 2 || !start) return;
    const before = factor();
    const { far, x } = apart();
    set((start.factor * far) / start.far);
    const inside = x - frame.getBoundingClientRect().left;
    frame.scrollLeft = ((frame.scrollLeft + inside) * factor()) / before - inside;
  });
  for (const end of ["pointerup", "pointercancel"]) {
    frame.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      start = null;
    });
  }
}

/** By layer: how many heads count for each category, and the best score of the relations chosen. */

import { el, freshId, svg } from "./dom.mjs";
import { plain, share } from "./format.mjs";
import { roundTicks, ticks } from "./layout.mjs";
import { profile } from "./measures.mjs";

const SIZE = { left: 52, right: 12, top: 18, bottom: 38, height: 150 };

/** @returns node, drawing, sync(view), resize(). */
export function createProfile(atlas) {
  const titleId = freshId("profile");
  const strips = [...atlas.categories, "score"].map((name) => {
    const wordsId = freshId("strip");
    const canvas = svg("svg", { class: "strip", role: "img", "aria-labelledby": wordsId });
    const words = el("figcaption", { id: wordsId, class: "hidden" });
    return { name, canvas, words, node: el("figure", { class: "strip-figure" }, canvas, words) };
  });
  const drawing = el("div", { class: "drawing strips" }, ...strips.map((strip) => strip.node));
  const node = el("section", { "aria-labelledby": titleId }, el("h2", { id: titleId }, "By layer"), drawing);
  /** @type {any} */
  let shown = null;
  const draw = () => {
    const { counts, best, control } = profile(shown);
    const most = Math.max(1, ...counts.map((each) => Math.max(...each)));
    strips.forEach((strip, at) => {
      if (at < counts.length) drawCounts(atlas, strip, counts[at], most);
      else drawBest(atlas, strip, best, control, shown.about);
    });
  };
  return {
    ...{ node, drawing },
    sync(view) {
      if (shown?.reading === view.reading && shown.about === view.about) return;
      shown = view;
      draw();
    },
    resize: () => shown && draw(),
  };
}

function drawCounts(atlas, strip, counts, most) {
  const plot = frame(
    atlas,
    strip,
    `${strip.name}: heads`,
    most,
    roundTicks(0, most, 3).filter(Number.isInteger),
  );
  const bars = Array.from(counts, (n, layer) =>
    n ? `M${plot.x(layer)} ${plot.y(0)}V${plot.y(n)}h${plot.wide}V${plot.y(0)}z` : "",
  );
  strip.canvas.append(svg("path", { class: "bar-up", d: bars.join("") }));
  const busy = Array.from(counts, (n, layer) => [n, layer])
    .filter(([n]) => n)
    .sort((a, b) => b[0] - a[0]);
  const said = busy.slice(0, 4).map(([n, layer]) => `${n} in layer ${layer}`);
  strip.words.textContent = `${strip.name}, heads by layer: ${said.join(", ") || "none"}`;
}

/** Bars for the best head of each layer, a line for the state itself on the same relation. */
function drawBest(atlas, strip, best, control, about) {
  const title = about ? `best score on ${about}` : "best score of any relation";
  const plot = frame(atlas, strip, "best score; line: control", 1, [0, 0.5, 1]);
  const bars = Array.from(best, (value, layer) =>
    value > 0 ? `M${plot.x(layer)} ${plot.y(0)}V${plot.y(value)}h${plot.wide}V${plot.y(0)}z` : "",
  );
  const line = Array.from(control, (value, layer) =>
    value >= 0
      ? `${control[layer - 1] >= 0 ? "L" : "M"}${plot.x(layer) + plot.wide / 2} ${plot.y(value)}`
      : "",
  );
  strip.canvas.append(
    svg("path", { class: "bar-up", d: bars.join("") }),
    svg("path", { class: "control-line", d: line.join("") }),
  );
  let peak = 0;
  best.forEach((value, layer) => (peak = value > (best[peak] || 0) ? layer : peak));
  strip.words.textContent =
    `${title} by layer: largest ${share(best[peak])} in layer ${peak}` +
    (control[peak] >= 0
      ? `, where the state itself scores ${share(control[peak])} on the same relation`
      : ", a suppression, which has no control");
}

function frame(atlas, { canvas, node }, title, most, values) {
  const width = Math.max(200, node.clientWidth);
  const bottom = SIZE.height - SIZE.bottom;
  const step = (width - SIZE.left - SIZE.right) / atlas.nLayers;
  const x = (layer) => SIZE.left + layer * step;
  const y = (value) => bottom - ((bottom - SIZE.top) * value) / most;
  canvas.setAttribute("width", width);
  canvas.setAttribute("height", SIZE.height);
  const labels = ticks(atlas.nLayers, step, 26).map((layer) =>
    svg("text", { x: x(layer) + step / 2, y: bottom + 14, "text-anchor": "middle" }, String(layer)),
  );
  for (const value of values) {
    labels.push(
      svg("path", { class: "guide", d: `M${SIZE.left} ${y(value)}H${width - SIZE.right}` }),
      svg("text", { x: SIZE.left - 6, y: y(value), "text-anchor": "end", dy: "0.35em" }, plain(value)),
    );
  }
  labels.push(
    svg("text", { class: "axis", x: SIZE.left, y: 11 }, title),
    svg(
      "text",
      { class: "axis", x: (SIZE.left + width) / 2, y: SIZE.height - 8, "text-anchor": "middle" },
      "Layer",
    ),
  );
  canvas.replaceChildren(svg("g", { class: "axes" }, ...labels));
  return { x, y, wide: Math.max(1, step - Math.min(2, step / 4)) };
}

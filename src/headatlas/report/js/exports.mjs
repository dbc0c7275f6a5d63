/** What is drawn, as one SVG with its own colours and words, and as PNG made from it. */

import { fileStem, save, svg } from "./dom.mjs";

const PAD = 12;
const SCALE = 3;
/** Style that a drawing takes along; the page's style sheet stays behind. */
const STYLE = [
  "fill",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "font-size",
  "font-weight",
  "shape-rendering",
];

/** Save a part of the page as "svg" or "png". */
export function saveDrawing(drawing, model, what, kind) {
  const { node, width, height } = drawingAsSvg(drawing);
  const text = new XMLSerializer().serializeToString(node);
  const name = `${fileStem(model)}-${what}.${kind}`;
  if (kind === "svg") save(name, new Blob([text], { type: "image/svg+xml" }));
  else savePng(text, width, height, name);
}

/**
 * A part of the page as one SVG: its plots as they are, its words and swatches where they stand.
 *
 * @returns {{node: any, width: number, height: number}}
 */
export function drawingAsSvg(drawing) {
  const bounds = drawing.getBoundingClientRect();
  const parts = [];
  const visit = (node) => {
    if (node.nodeType === Node.TEXT_NODE) parts.push(...textLines(node, bounds));
    if (node.nodeType !== Node.ELEMENT_NODE || isHidden(node)) return;
    if (node.tagName === "svg") parts.push(plotOf(node, bounds));
    else if (node.matches(".swatch, .dot")) parts.push(swatchOf(node, bounds));
    else node.childNodes.forEach(visit);
  };
  visit(drawing);
  // Plots may be wider than the room that they scroll in.
  const plots = parts.filter((part) => part.tagName === "svg");
  const edge = (at, size) =>
    Math.max(0, ...plots.map((part) => Number(part.getAttribute(at)) + Number(part.getAttribute(size))));
  const width = Math.ceil(Math.max(bounds.width + 2 * PAD, edge("x", "width") + PAD));
  const height = Math.ceil(Math.max(bounds.height + 2 * PAD, edge("y", "height") + PAD));
  const { backgroundColor, fontFamily } = getComputedStyle(document.body);
  const node = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, "font-family": fontFamily },
    svg("rect", { width, height, fill: backgroundColor }),
    ...parts,
  );
  return { node, width, height };
}

function isHidden(node) {
  const { display, visibility } = getComputedStyle(node);
  return display === "none" || visibility === "hidden" || node.matches(".hidden, .hint, button, select");
}

/** A plot with the colours that it has here; what is not seen stays behind. */
function plotOf(node, bounds) {
  const { left, top, width, height } = node.getBoundingClientRect();
  const copy = node.cloneNode(true);
  const [mine, theirs] = [node, copy].map((each) => [...each.querySelectorAll("*")]);
  mine.forEach((each, i) => {
    const style = getComputedStyle(each);
    for (const name of STYLE) {
      const value = style.getPropertyValue(name);
      // A pattern's address would be that of the page.
      if (value && !value.startsWith("url")) theirs[i].setAttribute(name, value);
    }
  });
  theirs.forEach((each, i) => {
    for (const { name } of [...each.attributes])
      if (name === "class" || name.startsWith("data-")) each.removeAttribute(name);
    if (
      getComputedStyle(mine[i]).display === "none" &&
      mine[i].tagName !== "defs" &&
      !mine[i].closest("defs")
    )
      each.remove();
  });
  for (const { name } of [...copy.attributes]) copy.removeAttribute(name);
  const place = { x: left - bounds.left + PAD, y: top - bounds.top + PAD, width, height };
  for (const [name, value] of Object.entries(place)) copy.setAttribute(name, String(value));
  return copy;
}

function swatchOf(node, bounds) {
  const { left, top, width, height } = node.getBoundingClientRect();
  const place = { x: left - bounds.left + PAD, y: top - bounds.top + PAD, width, height };
  return svg("rect", { ...place, fill: getComputedStyle(node).backgroundColor });
}

/** A text node as lines, broken where the page breaks it. */
function textLines(node, bounds) {
  const style = getComputedStyle(node.parentNode);
  const range = document.createRange();
  const lines = [];
  for (const { 0: word, index } of node.data.matchAll(/\S+/g)) {
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    const { left, top, bottom, width } = range.getBoundingClientRect();
    if (!width) continue;
    const last = lines[lines.length - 1];
    if (last && Math.abs(last.top - top) < 2) last.words.push(word);
    else lines.push({ left, top, bottom, words: [word] });
  }
  return lines.map(({ left, top, bottom, words }) =>
    svg(
      "text",
      {
        x: left - bounds.left + PAD,
        y: (top + bottom) / 2 - bounds.top + PAD,
        dy: "0.35em",
        fill: style.color,
        "font-size": style.fontSize,
        "font-weight": style.fontWeight,
      },
      words.join(" "),
    ),
  );
}

function savePng(text, width, height, name) {
  const image = new Image();
  image.addEventListener("load", () => {
    const canvas = document.createElement("canvas");
    canvas.width = width * SCALE;
    canvas.height = height * SCALE;
    canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => blob && save(name, blob), "image/png");
  });
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}

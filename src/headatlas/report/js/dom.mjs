/** Building elements. Text only ever becomes text nodes, so no name can turn into markup. */

import { count } from "./format.mjs";

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element with attributes (false and null are left off) and children (nodes or strings; null is left off).
 *
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `on` holds event handlers
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * The same for SVG.
 *
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

let used = 0;

/** An id that no other element of the document has, for labels and descriptions. */
export function freshId(stem) {
  used += 1;
  return `headatlas-${stem}-${used}`;
}

/** A button. It can be turned off by `turnOff` and then keeps the focus, where `disabled` would drop it. */
export function button(label, click, attributes = {}) {
  const node = el("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", (event) => {
    if (node.getAttribute("aria-disabled") !== "true") click(event);
  });
  return node;
}

/** Turn a button off, or on again. */
export function turnOff(node, off) {
  if (off) node.setAttribute("aria-disabled", "true");
  else node.removeAttribute("aria-disabled");
}

/** A caveat where it matters: a word that opens a sentence. */
export function hint(word, ...sentence) {
  return el("details", { class: "hint" }, el("summary", {}, word), el("p", {}, ...sentence));
}

/** A fold whose contents, a list of nodes, are made when it is first opened. */
export function fold(attributes, summary, make) {
  const node = el("details", attributes, summary);
  node.addEventListener("toggle", () => node.open && node.children.length === 1 && node.append(...make()));
  return node;
}

/** Open a fold as a reader does. The browser tells of it later, and then what is in it is there already. */
export function unfold(node) {
  node.open = true;
  node.dispatchEvent(new Event("toggle"));
}

/** Further entries, made when they are asked for; null where there are none. */
export function more(n, noun, make) {
  if (n <= 0) return null;
  const summary = el("summary", {}, `${count(n, noun)} more`);
  return fold({ class: "more", "data-key": `more-${noun}` }, summary, () => [make()]);
}

/** What a part of the card is that was never measured, and the command that does it. */
export function missing(title, command) {
  return [
    el("h3", {}, title),
    el("p", { class: "quiet" }, "Not measured: ", el("code", {}, `headatlas ${command} DIR`)),
  ];
}

/**
 * A share as a bar from 0 to 1; `mark` is a line on it, `range` an interval.
 *
 * @param {number} value
 * @param {{down?: boolean, mark: number, range?: [number, number]}} also
 */
export function bar(value, { down = false, mark, range }) {
  const rect = (kind, x, width, y = 0, height = 8) =>
    svg("rect", { class: `bar-${kind}`, x, y, width, height });
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    rect("ground", 0, 100),
    rect(down ? "down" : "up", 0, 100 * value),
    range && rect("range", 100 * range[0], Math.max(0, 100 * (range[1] - range[0])), 3, 2),
    rect("mark", 100 * mark - 0.4, 0.8),
  );
}

/** A labelled choice. Groups are [label, [[value, text], …]]; an empty label stands for no group. */
export function select(label, groups, change, attributes = {}) {
  const id = freshId("select");
  const options = (entries) => entries.map(([value, text]) => el("option", { value }, text));
  const inner = groups.flatMap(([name, entries]) =>
    name ? [el("optgroup", { label: name }, ...options(entries))] : options(entries),
  );
  const input = el("select", { id, ...attributes, on: { change: () => change(input.value) } }, ...inner);
  const node = el("div", { class: "control" }, el("label", { for: id }, label), input);
  return { node, input };
}

/** Buttons that save a drawing; click is given "svg" or "png". */
export function saveButtons(what, click) {
  const one = (kind) =>
    button(kind.toUpperCase(), () => click(kind), {
      "aria-label": `Save the ${what} as ${kind.toUpperCase()}`,
    });
  return el(
    "div",
    { class: "buttons save", role: "group", "aria-label": `Save the ${what}` },
    one("svg"),
    one("png"),
  );
}

/** Fit a drawing now, and whenever its room or the zoom of the page changes: cells are whole device pixels. */
export function followSize(node, fit) {
  let width = node.clientWidth;
  let ratio = window.devicePixelRatio;
  fit();
  new ResizeObserver(() => {
    if (node.clientWidth === width && window.devicePixelRatio === ratio) return;
    width = node.clientWidth;
    ratio = window.devicePixelRatio;
    // In the next frame: what changes size while sizes are told would be told again.
    requestAnimationFrame(fit);
  }).observe(node);
}

/** Hand a file to the reader. */
export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Hand a table to the reader. */
export function saveCsv(model, what, text) {
  save(`${fileStem(model)}-${what}.csv`, new Blob([text], { type: "text/csv;charset=utf-8" }));
}

/** A head's name that opens its card; handlers has open(cell, how). */
export function headButton(name, cell, handlers) {
  return button(name, () => handlers.open(cell, "link"), {
    class: "link",
    "aria-label": `Open head ${name}`,
  });
}

/** A relation's title that shows it in the figure; handlers has choose(relation index). */
export function relationButton(relation, handlers, className = "link") {
  return button(relation.title, () => handlers.choose(relation.index), {
    class: className,
    title: "Show this relation in the figure",
  });
}

/** A model's name as the beginning of a file's. */
export function fileStem(name) {
  return name.replace(/[^\w.-]+/g, "-").slice(0, 80) || "model";
}

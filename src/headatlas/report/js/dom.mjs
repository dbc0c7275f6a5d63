/** Building elements. Text only ever becomes text nodes, so no name can turn into markup. */

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

/** A button; `attributes` may have `on`. */
export function button(label, click, attributes = {}) {
  return el("button", { type: "button", ...attributes, on: { click } }, label);
}

/** A caveat where it matters: a word that opens a sentence. */
export function hint(word, ...sentence) {
  return el("details", { class: "hint" }, el("summary", {}, word), el("p", {}, ...sentence));
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

/** Hand a file to the reader. */
export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** A model's name as the beginning of a file's. */
export function fileStem(name) {
  return name.replace(/[^\w.-]+/g, "-").slice(0, 80) || "model";
}

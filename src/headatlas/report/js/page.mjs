/** The page: one state, everything drawn from it. */

import { countHeads, decode, headsOf, read } from "./atlas.mjs";
import { chosenRelations, createControls, createLegend } from "./controls.mjs";
import { el, freshId } from "./dom.mjs";
import { createHeads } from "./heads.mjs";
import { createCaption, createCaveats, createHeader, createInWords, createProvenance } from "./notes.mjs";
import { createPanels } from "./panels.mjs";
import { createRelations } from "./relations.mjs";
import { createTooltip } from "./tooltip.mjs";

/**
 * Show an atlas inside an element.
 *
 * @param root an empty element with the class "headatlas" on it or around it.
 * @param data the page's data, as report/data.py writes it.
 */
export function mount(root, data) {
  const atlas = decode(data);
  const { tau, criterion } = atlas.thresholds;
  const state = { tau, criterion, relation: "", pinned: null };
  const page = { atlas, state, reading: null, chosen: null, due: false };
  const change = (part) => {
    Object.assign(state, part);
    schedule(page);
  };
  const pin = (cell) => change({ pinned: cell === state.pinned ? null : cell });
  page.tooltip = createTooltip(atlas);
  page.controls = createControls(atlas, change);
  page.legend = createLegend(atlas);
  page.caption = createCaption(atlas);
  page.panels = createPanels(atlas, { pin, point: (...args) => point(page, ...args) });
  page.heads = createHeads(atlas, { pin, point: (cell) => page.panels.mark(cell) });
  page.relations = createRelations(atlas, pin);
  root.replaceChildren(...assemble(page));
  followSize(page);
  const away = () => point(page, null);
  window.addEventListener("scroll", away, { passive: true });
  document.addEventListener("pointerdown", (event) => {
    if (!page.panels.node.contains(event.target)) away();
  });
  render(page);
}

function assemble(page) {
  const { atlas } = page;
  const alternative = el("p", { class: "hidden", id: freshId("alternative") }, atlas.data.alternative);
  const figure = el(
    "section",
    { class: "figure", role: "group", "aria-label": "Heads by category", "aria-describedby": alternative.id },
    page.controls.node,
    page.legend.node,
    page.panels.node,
    page.caption.node,
    alternative,
    createInWords(atlas),
  );
  return [
    createHeader(atlas),
    el(
      "main",
      {},
      figure,
      createCaveats(atlas),
      page.heads.node,
      page.relations.node,
      createProvenance(atlas),
    ),
    page.tooltip.node,
    page.tooltip.say,
  ];
}

function point(page, cell, anchor, how) {
  page.panels.mark(cell);
  if (cell === null) page.tooltip.hide();
  else page.tooltip.show(cell, anchor, page.reading, how === "keys");
}

/** Draw once per frame, however fast the slider moves. */
function schedule(page) {
  if (page.due) return;
  page.due = true;
  requestAnimationFrame(() => {
    page.due = false;
    render(page);
  });
}

function render(page) {
  const { atlas, state } = page;
  const thresholds = { ...atlas.thresholds, tau: state.tau, criterion: state.criterion };
  if (page.reading?.thresholds.tau !== state.tau || page.reading.thresholds.criterion !== state.criterion) {
    page.reading = read(atlas, thresholds);
  }
  if (page.relation !== state.relation) {
    page.relation = state.relation;
    page.chosen = chosenRelations(atlas, state.relation);
  }
  const only = headsOf(atlas, page.reading, page.chosen);
  const [all] = countHeads(atlas, page.reading, only);
  const mapped = atlas.mapped.reduce((sum, done) => sum + done, 0) * atlas.nHeads;
  page.controls.sync(state);
  page.legend.sync(all.levels, mapped - all.total);
  page.caption.sync(thresholds);
  page.panels.draw(page.reading, only);
  page.panels.markPinned(state.pinned);
  page.heads.sync(page.reading, { chosen: page.chosen, cell: state.pinned, about: about(page) });
  page.relations.sync(page.reading);
}

function about(page) {
  const { relation } = page.state;
  if (relation === "") return "";
  const [kind, index] = relation.split(":");
  return kind === "category"
    ? page.atlas.categories[Number(index)]
    : page.atlas.relations[Number(relation)].title;
}

/** Cells are whole device pixels, so they change with the room and with the zoom. */
function followSize(page) {
  const node = page.panels.node;
  const fit = () => page.panels.resize(node.clientWidth, Math.max(1, window.devicePixelRatio || 1));
  fit();
  let width = node.clientWidth;
  let ratio = window.devicePixelRatio;
  new ResizeObserver(() => {
    if (node.clientWidth === width && window.devicePixelRatio === ratio) return;
    width = node.clientWidth;
    ratio = window.devicePixelRatio;
    fit();
  }).observe(node);
}

const own = document.getElementById("atlas-data");
if (own) mount(document.getElementById("atlas"), JSON.parse(own.textContent));

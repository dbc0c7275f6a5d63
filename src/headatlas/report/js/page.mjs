/**
 * The page: one state, everything drawn from it.
 *
 * `mounted` is a promise of the app of this page, null where the document holds no atlas. The app is what another
 * module, bundled after this one, attaches to by importing `mounted`:
 *
 *   app.atlas             the decoded atlas; app.atlas.data is the embedded data, with whatever else it holds (such as
 *                         `live`, which says that a server answers)
 *   app.state             the state (state.mjs); read it, change it by app.change
 *   app.change(part)      change properties of the state; the controls follow at once, what is drawn in the next frame
 *   app.select(cell)      open the card of a head, by its cell (layer * nHeads + head); null closes it
 *   app.selectHead(name)  the same by name, "23.4"
 *   app.show(painted)     colour the figure by values from elsewhere, {title, value: Float64Array [cell], NaN where
 *                         there is none, range: [least, most]}; null gives the figure back to the state
 *   app.subscribe(hear)   hear(state, view) after each drawing; returns a function that ends it
 *   app.slot              <section id="live" hidden>, above the figure, empty: for what attaches
 *
 * The element that the page stands in says by `data-drawn` whether all of the state is drawn: "true" or "false".
 */

import { decode, headNamed, headsOf, read, scoresAt } from "./atlas.mjs";
import { createCard } from "./card.mjs";
import { decodeChanges, measuresOfChanges } from "./changes.mjs";
import { createChanges } from "./changetable.mjs";
import { paint, valuesPaint } from "./colours.mjs";
import { chosenWords, createControls } from "./controls.mjs";
import { el, followSize, saveButtons } from "./dom.mjs";
import { saveDrawing } from "./exports.mjs";
import { createFigure } from "./figure.mjs";
import { createFinder } from "./finder.mjs";
import { createHeads } from "./heads.mjs";
import { decodeHeads, measuresOf } from "./measures.mjs";
import { createCaveats, createHeader, createInWords, createProvenance } from "./notes.mjs";
import { createProfile } from "./profile.mjs";
import { createRelations } from "./relations.mjs";
import { createScatter } from "./scatter.mjs";
import { createSideBySide } from "./sidebyside.mjs";
import {
  chosenRelations,
  colouredBy,
  formatFragment,
  initialState,
  parseFragment,
  thresholdsOf,
} from "./state.mjs";
import { createTooltip } from "./tooltip.mjs";
import { unpack } from "./unpack.mjs";
import { decodeSalience, decodeWords } from "./words.mjs";

/** Milliseconds without a change after which what is under the figure is drawn. */
const REST_AFTER = 60;
/** Whether the page stands in a frame of a notebook, without an address of its own. */
const framed = location.protocol === "about:";

/**
 * Show an atlas inside an element.
 *
 * @param root an empty element with the class "headatlas" on it or around it.
 * @param {PageData} data as report/data.py writes them
 * @returns {Promise<any>} the app.
 */
export async function mount(root, data) {
  const { packed } = data;
  // A frame is drawn on when it has a size: only then can the figure be fitted, and the card be begun at.
  if (framed)
    do await new Promise(requestAnimationFrame);
    while (!innerHeight);
  const steps = data.comparison?.steps ?? [];
  const sections = [packed.ranks, packed.words, packed.heads, ...steps.map((step) => step.cells)];
  const [ranks, words, heads, ...cells] = await Promise.all(sections.map(unpack));
  const scores = data.comparison?.scores ? await unpack(data.comparison.scores) : null;
  const atlas = decode(data, ranks);
  decodeWords(atlas, words);
  const comparison = decodeChanges(atlas, data.comparison, cells, scores);
  const app = createApp(root, atlas, decodeHeads(heads, atlas.nCells), comparison);
  root.replaceChildren(...assemble(app));
  listen(app);
  for (const part of [app.parts.figure, app.parts.profile, app.parts.scatter])
    followSize(part.drawing, part.resize);
  follow(app);
  render(app);
  renderRest(app);
  if (framed) beginAtCard(app);
  performance.mark("headatlas-ready");
  if (app.state.head !== null || app.state.find) readSalience(app);
  sayDrawn(app);
  return app;
}

function createApp(root, atlas, heads, comparison) {
  const measures = [...measuresOf(atlas, heads), ...measuresOfChanges(comparison)];
  /** @type {any} */
  const app = {
    ...{ root, atlas, heads, comparison, measures, salience: null, shown: null },
    state: parseFragment(atlas, location.hash || atlas.data.opens),
    ...{ view: null, due: false, later: 0, hearers: new Set(), parts: {} },
    slot: el("section", { id: "live", hidden: true }),
  };
  app.change = (part) => {
    Object.assign(app.state, part);
    follow(app);
    schedule(app);
  };
  app.select = (cell) => {
    if (cell !== null) readSalience(app);
    app.change({ head: cell });
  };
  app.selectHead = (name) => app.select(headNamed(atlas, name));
  app.show = (shown) => {
    app.shown = shown;
    schedule(app);
  };
  app.subscribe = (hear) => {
    app.hearers.add(hear);
    return () => app.hearers.delete(hear);
  };
  return app;
}

/** Texts of tokens are many and are read when a card or a search first asks for them. */
function readSalience(app) {
  const section = app.atlas.data.packed.salience;
  if (!section || app.reading) return;
  app.reading = unpack(section).then((arrays) => {
    app.salience = decodeSalience(arrays, app.atlas.nCells);
    schedule(app);
  });
}

function assemble(app) {
  const { atlas, parts } = app;
  const open = (cell, how) => openCard(app, cell, how);
  const point = (...args) => lookAt(app, ...args);
  const close = () => closeCard(app);
  const choose = (index) => app.change({ relations: [index], categories: [], colour: "" });
  parts.tooltip = createTooltip(atlas);
  parts.header = createHeader(atlas, app.change);
  parts.controls = createControls(atlas, app.measures, {
    change: app.change,
    reset: () => app.change({ ...initialState(atlas), scheme: app.state.scheme }),
  });
  const keep = (what, drawing) => (kind) => {
    drawNow(app);
    saveDrawing(drawing(), atlas.data.model, what, kind);
  };
  parts.figure = createFigure(atlas, {
    point,
    open,
    close,
    save: keep("figure", () => parts.figure.drawing),
  });
  parts.card = createCard(atlas, { open, close, choose });
  parts.finder = createFinder({ change: app.change, open, choose, wanted: () => readSalience(app) });
  parts.controls.reset.before(parts.finder.box);
  parts.scatter = createScatter(atlas, app.measures, { change: app.change, point, open, close });
  parts.profile = createProfile(atlas);
  const rows = {
    change: app.change,
    open,
    choose,
    point: (cell) => markHead(app, cell),
    drawNow: () => drawNow(app),
  };
  parts.heads = createHeads(atlas, rows);
  parts.changes = createChanges(atlas, app.comparison, rows);
  parts.relations = createRelations(atlas, { open, choose });
  parts.scatter.node.append(
    saveButtons(
      "scatter",
      keep("scatter", () => parts.scatter.drawing),
    ),
  );
  parts.profile.node.append(
    saveButtons(
      "layers",
      keep("layers", () => parts.profile.drawing),
    ),
  );
  const figure = el(
    "section",
    { class: "main-figure", "aria-labelledby": "figure-title" },
    el("h2", { id: "figure-title", class: "hidden" }, "Figure"),
    parts.figure.node,
    createInWords(atlas),
  );
  const left = el("div", { class: "left" }, figure, parts.profile.node, parts.scatter.node);
  return [
    parts.header.node,
    el(
      "main",
      {},
      parts.controls.node,
      parts.finder.node,
      app.slot,
      el("div", { class: "beside" }, left, parts.card.node),
      ...[parts.changes, createSideBySide(atlas, app.comparison, rows)].flatMap((part) => part?.node ?? []),
      parts.heads.node,
      parts.relations.node,
      createCaveats(atlas),
      createProvenance(atlas),
    ),
    parts.tooltip.node,
    parts.tooltip.say,
  ];
}

function markHead(app, cell) {
  app.parts.figure.mark(cell);
  app.parts.scatter.mark("cursor", cell);
}

function openCard(app, cell, how) {
  app.opener = document.activeElement;
  app.select(cell);
  lookAt(app, null);
  app.arriving = how;
}

function closeCard(app) {
  const inside = app.parts.card.node.contains(document.activeElement);
  app.select(null);
  if (inside) (app.opener?.isConnected ? app.opener : app.parts.figure).focus();
}

/** Begin with the card that is open, where it is not beside the figure; what is around the frame stays. */
function beginAtCard({ state, parts }) {
  const { top } = parts.card.node.getBoundingClientRect();
  if (state.head !== null && top > innerHeight / 2) scrollTo({ top, behavior: "instant" });
}

/** Bring a card that was just opened into view; the keyboard goes there, too. */
function arrive(app) {
  const { card } = app.parts;
  const how = app.arriving;
  app.arriving = null;
  if (!how || app.state.head === null) return;
  card.node.scrollTop = 0;
  if (how !== "pointer") card.title.focus({ preventScroll: true });
  const { top, bottom } = card.node.getBoundingClientRect();
  const { clientHeight } = document.documentElement;
  if (top < 0 || top > clientHeight - 160 || bottom < 160) card.node.scrollIntoView({ block: "start" });
}

function lookAt(app, cell, anchor, how) {
  markHead(app, cell);
  if (cell === null || !app.view) app.parts.tooltip.hide();
  else app.parts.tooltip.show(cell, anchor, app.view, how === "keys");
}

function listen(app) {
  window.addEventListener("scroll", () => lookAt(app, null), { passive: true });
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) === formatFragment(app.atlas, app.state)) return;
    const state = parseFragment(app.atlas, location.hash);
    if (state.head !== null || state.find) readSalience(app);
    app.change(state);
  });
}

/** Controls show the state at once: whoever operates the next one must not find how the last drawing was. */
function follow({ state, parts }) {
  for (const part of [parts.controls, parts.finder, parts.scatter, parts.heads, parts.changes])
    part?.follow(state);
}

/** Draw once per frame, however fast the slider moves. */
function schedule(app) {
  if (app.due) return;
  app.due = true;
  sayDrawn(app);
  requestAnimationFrame(() => app.due && render(app));
}

/** Draw what waits for a frame or for rest: a file holds what the controls say. */
function drawNow(app) {
  if (app.due) render(app);
  if (app.later) renderRest(app);
}

function sayDrawn(app) {
  const reading = app.reading && !app.salience;
  app.root.dataset.drawn = String(!app.due && !app.later && !reading);
}

/** What is shown, from the state: pure but for the results it keeps. */
function viewOf(app) {
  const { atlas, heads, comparison, state, view: last } = app;
  const step = comparison?.steps[state.step - 1] ?? null;
  const thresholds = thresholdsOf(atlas, state);
  let scores = last?.reading.scores;
  if (!scores || scores.k !== state.k || scores.kCopy !== state.kCopy)
    scores = scoresAt(atlas, state.k, state.kCopy);
  const same =
    last &&
    last.reading.scores === scores &&
    JSON.stringify(last.reading.thresholds) === JSON.stringify(thresholds);
  const reading = same ? last.reading : read(atlas, scores, thresholds);
  const chosen = chosenRelations(atlas, state);
  const context = { atlas, heads, comparison, step, reading, chosen, salience: app.salience };
  const painted = app.shown ? valuesPaint(atlas, app.shown) : paint(context, colouredBy(state), app.measures);
  const only = headsOf(atlas, reading, chosen);
  return {
    ...context,
    cell: state.head,
    painted,
    only,
    about: chosenWords(atlas, state),
  };
}

function render(app) {
  const { state, parts } = app;
  app.due = false;
  const view = viewOf(app);
  app.view = view;
  parts.header.sync(view, state);
  parts.figure.sync(view);
  parts.figure.pin(state.head);
  parts.scatter.mark("pin", state.head);
  parts.card.sync(view);
  arrive(app);
  for (const hear of app.hearers) hear(state, view);
  clearTimeout(app.later);
  app.later = setTimeout(() => renderRest(app), REST_AFTER);
}

/** What is under the figure follows when a slider rests, so that the figure moves with it. */
function renderRest(app) {
  const { state, parts, view } = app;
  clearTimeout(app.later);
  app.later = 0;
  parts.finder.sync(view, state);
  parts.profile.sync(view);
  parts.scatter.sync(view);
  parts.scatter.mark("pin", state.head);
  parts.heads.sync(view, state);
  parts.changes?.sync(view, state);
  parts.relations.sync(view);
  remember(app);
  sayDrawn(app);
}

/** The address says what is shown, so that it can be sent. */
function remember(app) {
  if (framed) return;
  const fragment = formatFragment(app.atlas, app.state);
  if (location.hash.slice(1) !== fragment) {
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  }
}

const own = document.getElementById("atlas-data");
export const mounted = own
  ? mount(document.getElementById("atlas"), JSON.parse(own.textContent))
  : Promise.resolve(null);

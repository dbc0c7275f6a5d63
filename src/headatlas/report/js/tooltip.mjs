/** What is known about one head, in short: a small table beside it, and the same in a sentence for screen readers. */

import {
  confirmedOnly,
  effectName,
  headName,
  isMapped,
  isSuppression,
  rowsOfHead,
  strength,
} from "./atlas.mjs";
import { el } from "./dom.mjs";
import { count, interval, listed, plain, rate, share } from "./format.mjs";
import { spoken } from "./measures.mjs";

const MOST = 5;
const OTHERS = 2;
const WORTH_NAMING = 0.03;

/** @returns node, say (a live region), show(cell, anchor, view, aloud), hide(). */
export function createTooltip(atlas) {
  const node = el("div", { class: "tooltip", "aria-hidden": "true" });
  const say = el("div", { class: "hidden", role: "status", "aria-live": "polite" });
  /** @type {{cell: number, view: any} | null} */
  let shown = null;
  return {
    node,
    say,
    show(cell, anchor, view, aloud) {
      if (shown?.cell !== cell || shown?.view !== view) {
        node.replaceChildren(...describeHead(atlas, cell, view));
        shown = { cell, view };
      }
      node.classList.add("on");
      position(node, anchor);
      if (aloud) say.textContent = sentence(atlas, cell, view);
    },
    hide() {
      node.classList.remove("on");
    },
  };
}

/** The rows worth naming, best first: those that count, and a few of the others. */
export function notable(atlas, cell, reading) {
  const best = rowsOfHead(atlas, cell).sort((a, b) => strength(reading, b) - strength(reading, a));
  const called = best.filter((row) => reading.effect[row]);
  const others = best
    .filter((row) => !reading.effect[row] && strength(reading, row) >= WORTH_NAMING)
    .slice(0, OTHERS);
  return { called, others };
}

function describeHead(atlas, cell, view) {
  const layer = Math.floor(cell / atlas.nHeads);
  const heading = el("p", { class: "tooltip-title" }, `Layer ${layer}, head ${cell % atlas.nHeads}`);
  if (!isMapped(atlas, cell)) return [heading, el("p", {}, unmappedWhy(atlas, layer))];
  const { called, others } = notable(atlas, cell, view.reading);
  const listedRows = [...called.slice(0, MOST), ...others];
  const parts = [heading, el("p", { class: "quiet" }, summary(atlas, cell, view.reading))];
  const { painted } = view;
  if (painted.value && painted.kind === "values") {
    const own = painted.value[cell];
    parts.push(el("p", {}, `${painted.title}: ${Number.isNaN(own) ? "–" : plain(own)}`));
  }
  if (listedRows.length) parts.push(relationTable(atlas, listedRows, view.reading));
  if (called.length > MOST) parts.push(el("p", { class: "quiet" }, `and ${called.length - MOST} more`));
  const looks = looksOf(view.heads, cell);
  if (looks) parts.push(el("p", { class: "quiet" }, looks));
  return parts;
}

/** Why a head has nothing: its layer has no heads, or was not mapped. */
export function unmappedWhy(atlas, layer) {
  return atlas.data.layers_without_heads.includes(layer)
    ? "This layer has no attention heads."
    : "This layer has not been mapped.";
}

function looksOf(heads, cell) {
  const called = heads.behaviours.filter((each) => each.called[cell]);
  return called.length
    ? `looks: ${called.map((each) => `${spoken(each.name)} ${each.value[cell].toFixed(2)}`).join(", ")}`
    : "";
}

/** "2 categories: Knowledge and Linguistic". */
export function summary(atlas, cell, reading) {
  const which = atlas.categories.filter((_, i) => reading.member[i][cell]);
  if (!which.length) return "Implements none of the relations asked, by this criterion";
  return `${count(which.length, "category", "categories")}: ${listed(which)}`;
}

function relationTable(atlas, listedRows, reading) {
  const { rows, relations } = atlas;
  const { scores } = reading;
  const head = ["Relation", "Score", "95 %", "q", "Control"];
  const body = listedRows.map((row) => {
    const relation = relations[rows.relation[row]];
    const down = isSuppression(reading, row);
    const confirmed = confirmedOnly(rows.confirmed[row]);
    return el(
      "tr",
      { class: reading.effect[row] ? "called" : "below" },
      el(
        "td",
        {},
        relation.title,
        down && el("span", { class: "quiet" }, " suppresses"),
        confirmed && el("span", { class: "quiet" }, ` confirmed ${confirmed}`),
      ),
      el("td", {}, share((down ? scores.suppression : scores.score)[row])),
      el("td", {}, interval((down ? scores.suppressed : scores.hits)[row], relation.n_sources)),
      el("td", {}, rate((down ? scores.suppressionQ : scores.q)[row])),
      el("td", {}, share(scores.control[row])),
    );
  });
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", {}, name)))),
    el("tbody", {}, ...body),
  );
}

function sentence(atlas, cell, view) {
  const { rows, relations } = atlas;
  const { reading } = view;
  const { called } = notable(atlas, cell, reading);
  const parts = called.slice(0, MOST).map((row) => {
    const down = isSuppression(reading, row);
    const value = share((down ? reading.scores.suppression : reading.scores.score)[row]);
    const title = relations[rows.relation[row]].title;
    return `${effectName(down ? 2 : 1)} ${title}, ${value}, control ${share(reading.scores.control[row])}`;
  });
  const said = [summary(atlas, cell, reading), parts.join("; "), looksOf(view.heads, cell)].filter(Boolean);
  return `Head ${headName(atlas, cell)}. ${said.join(". ")}`;
}

/** Beside the head where there is room, under or over it else. */
function position(node, anchor) {
  const margin = 10;
  const { width, height } = node.getBoundingClientRect();
  const { clientWidth, clientHeight } = document.documentElement;
  let left = anchor.right + margin;
  if (left + width > clientWidth - margin) left = anchor.left - margin - width;
  let top = anchor.top - height / 2;
  if (left < margin) {
    // No room on either side: right above or below the head.
    left = Math.max(margin, Math.min(anchor.left - width / 3, clientWidth - width - margin));
    top = anchor.bottom + margin;
    if (top + height > clientHeight - margin) top = anchor.top - margin - height;
  }
  top = Math.max(margin, Math.min(top, clientHeight - height - margin));
  node.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

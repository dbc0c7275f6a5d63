/** What is known about one head: a small table beside it, and the same in a sentence for screen readers. */

import { confirmedOnly, effectName, headName, rowsOfHead } from "./atlas.mjs";
import { el } from "./dom.mjs";
import { count, interval, listed, rate, share } from "./format.mjs";

const MOST = 8;
const OTHERS = 3;
const WORTH_NAMING = 0.03;

/** @returns node, say (a live region), show(cell, anchor, reading, aloud), hide(). */
export function createTooltip(atlas) {
  const node = el("div", { class: "tooltip", "aria-hidden": "true" });
  const say = el("div", { class: "hidden", role: "status", "aria-live": "polite" });
  let shown = null;
  return {
    node,
    say,
    show(cell, anchor, reading, aloud) {
      if (shown?.cell !== cell || shown.reading !== reading) {
        node.replaceChildren(...describeHead(atlas, cell, reading));
        shown = { cell, reading };
      }
      node.classList.add("on");
      position(node, anchor);
      if (aloud) say.textContent = sentence(atlas, cell, reading);
    },
    hide() {
      node.classList.remove("on");
    },
  };
}

/** The rows worth naming, best first: those that count, and a few of the others. */
export function notable(atlas, cell, reading) {
  const { rows } = atlas;
  const strength = (row) => Math.max(rows.score[row], rows.suppression[row]);
  const best = rowsOfHead(atlas, cell).sort((a, b) => strength(b) - strength(a));
  const called = best.filter((row) => reading.effect[row]);
  const others = best.filter((row) => !reading.effect[row] && strength(row) >= WORTH_NAMING).slice(0, OTHERS);
  return { called, others };
}

function describeHead(atlas, cell, reading) {
  const heading = el("p", { class: "tooltip-title" }, `Layer ${place(atlas, cell).join(", head ")}`);
  if (!atlas.mapped[place(atlas, cell)[0]]) return [heading, el("p", {}, "This layer has not been mapped.")];
  const { called, others } = notable(atlas, cell, reading);
  const listedRows = [...called.slice(0, MOST), ...others];
  const parts = [heading, el("p", { class: "quiet" }, summary(atlas, cell, reading))];
  if (listedRows.length) parts.push(relationTable(atlas, listedRows, reading));
  if (called.length > MOST) parts.push(el("p", { class: "quiet" }, `and ${called.length - MOST} more`));
  return parts;
}

function place(atlas, cell) {
  return [Math.floor(cell / atlas.nHeads), cell % atlas.nHeads];
}

function summary(atlas, cell, reading) {
  const which = atlas.categories.filter((_, i) => reading.member[i][cell]);
  if (!which.length) return "Implements none of the relations asked, by this criterion";
  return `${count(which.length, "category", "categories")}: ${listed(which)}`;
}

function relationTable(atlas, listedRows, reading) {
  const { rows, relations } = atlas;
  const head = ["Relation", "Score", "95 %", "q", "Control", "Added"];
  const body = listedRows.map((row) => {
    const relation = relations[rows.relation[row]];
    const down = isSuppression(atlas, reading, row);
    const hits = down ? rows.suppressed[row] : rows.hits[row];
    return el(
      "tr",
      { class: reading.effect[row] ? "called" : "below" },
      el(
        "td",
        {},
        relation.title,
        down ? el("span", { class: "quiet" }, " suppresses") : null,
        confirmedOnly(rows.confirmed[row])
          ? el("span", { class: "quiet" }, ` confirmed ${confirmedOnly(rows.confirmed[row])}`)
          : null,
      ),
      el("td", {}, share(down ? rows.suppression[row] : rows.score[row])),
      el("td", {}, interval(hits, relation.n_sources)),
      el("td", {}, rate(down ? rows.suppressionQ[row] : rows.q[row])),
      el("td", {}, share(rows.control[row])),
      el("td", {}, down ? "–" : share(rows.added[row])),
    );
  });
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", {}, name)))),
    el("tbody", {}, ...body),
  );
}

/** Whether a row is about suppression: the effect that counts, or the stronger one. */
export function isSuppression(atlas, reading, row) {
  const bits = reading.effect[row];
  if (bits === 1 || bits === 2) return bits === 2;
  return atlas.rows.suppression[row] > atlas.rows.score[row];
}

function sentence(atlas, cell, reading) {
  const { rows, relations } = atlas;
  const { called } = notable(atlas, cell, reading);
  const parts = called.slice(0, MOST).map((row) => {
    const down = isSuppression(atlas, reading, row);
    const value = share(down ? rows.suppression[row] : rows.score[row]);
    const title = relations[rows.relation[row]].title;
    return `${effectName(down ? 2 : 1)} ${title}, ${value}, control ${share(rows.control[row])}`;
  });
  return `Head ${headName(atlas, cell)}. ${summary(atlas, cell, reading)}. ${parts.join("; ")}`;
}

/** Under the panel where there is room, so that the panels stay in view; else beside the head. */
function position(node, anchor) {
  const margin = 10;
  const { width, height } = node.getBoundingClientRect();
  const { clientWidth, clientHeight } = document.documentElement;
  const across = Math.max(margin, Math.min(anchor.left - width / 3, clientWidth - width - margin));
  let left = across;
  let top = anchor.below + margin;
  if (top + height > clientHeight - margin) {
    left = anchor.right + margin;
    if (left + width > clientWidth - margin) left = anchor.left - margin - width;
    top = anchor.top - height / 2;
    if (left < margin) {
      // No room on either side: right above or below the head.
      left = across;
      top = anchor.bottom + margin;
      if (top + height > clientHeight - margin) top = anchor.top - margin - height;
    }
  }
  top = Math.max(margin, Math.min(top, clientHeight - height - margin));
  node.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

/**
 * Questions to the model behind the page (`headatlas serve`): pairs, a word, a text.
 *
 * Answers colour the figure and open cards through the app of page.mjs. One question is out at a time: a new one
 * withdraws the last, and the server stops working on it.
 */

import { headName } from "./atlas.mjs";
import { button, el, freshId, save } from "./dom.mjs";
import { mounted } from "./page.mjs";
import { parseQuestion, rankText, visible, weightStep } from "./questions.mjs";

const SHOWN = 40;

/** Start the live part of a page. */
export function start(app) {
  const live = { app, asking: null, question: null, text: null };
  const id = freshId("ask");
  live.input = el("textarea", {
    id,
    rows: 1,
    placeholder: "France → Paris, Italy → Rome   or   Lima   or   any text",
    spellcheck: "false",
    on: { keydown: (event) => event.key === "Enter" && !event.shiftKey && submit(live, event) },
  });
  live.status = el("p", { class: "quiet", role: "status" });
  live.answer = el("div", {});
  const form = el(
    "form",
    { on: { submit: (event) => submit(live, event) } },
    el(
      "div",
      { class: "control" },
      el("label", { for: id }, "Ask the model: pairs (source → target, …), one word, or a text"),
      live.input,
    ),
    el("button", { type: "submit" }, "Ask"),
    button("Clear", () => clear(live)),
  );
  const title = el("h2", { id: freshId("asking") }, "Ask");
  app.slot.replaceChildren(title, form, live.status, live.answer);
  app.slot.setAttribute("aria-labelledby", title.id);
  app.slot.hidden = false;
}

function submit(live, event) {
  event.preventDefault();
  const question = parseQuestion(live.input.value);
  if (question === null) return;
  if ("wrong" in question) {
    live.status.textContent = question.wrong;
    return;
  }
  live.question = question;
  const show = { "/api/pairs": showPairs, "/api/word": showWord, "/api/text": showText }[question.path];
  void ask(live, question.path, question.body, (found) => {
    live.status.textContent = found.caption;
    show(live, found);
  });
}

function clear(live) {
  live.asking?.abort();
  live.input.value = "";
  live.status.textContent = "";
  live.answer.replaceChildren();
  live.app.show(null);
}

/** Ask, and withdraw the question before; what is wrong is said where answers are. */
async function ask(live, path, body, use) {
  live.asking?.abort();
  const asking = new AbortController();
  live.asking = asking;
  live.status.textContent = "asking …";
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: asking.signal,
    });
    const found = await answer.json();
    if (asking.signal.aborted) return;
    if (answer.ok) use(found);
    else live.status.textContent = found.error;
  } catch {
    if (!asking.signal.aborted) live.status.textContent = "The server does not answer; is it still running?";
  } finally {
    if (live.asking === asking) live.asking = null;
  }
}

const cellOf = (live, row) => row.layer * live.app.atlas.nHeads + row.head;

function headButton(live, row) {
  const name = headName(live.app.atlas, cellOf(live, row));
  const open = () => live.app.select(cellOf(live, row));
  return button(name, open, { class: "link", "aria-label": `Open head ${name}` });
}

/** Colour the figure by a number of each head. */
function colour(live, title, rows, of, range) {
  const value = new Float64Array(live.app.atlas.nCells).fill(NaN);
  for (const row of rows) value[cellOf(live, row)] = of(row);
  live.app.show({ title, value, range });
}

function table(label, columns, rows) {
  const head = el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)));
  return el(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": label },
    el("table", { class: "heads" }, el("thead", {}, head), el("tbody", {}, ...rows)),
  );
}

const line = (...cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell)));
const listed = (tokens) => tokens.map((token) => `'${visible(token)}'`).join(" ") || "nothing";

function showPairs(live, found) {
  const better = (row) => Math.max(row.score, row.suppression);
  colour(live, "score of the question", found.rows, better, [0, 1]);
  const ranks = (row) => (row.sign === "promotion" ? row.ranks : row.suppression_ranks);
  const rows = found.rows
    .slice(0, SHOWN)
    .map((row) =>
      line(
        headButton(live, row),
        row.sign,
        better(row).toFixed(2),
        row.control.toFixed(2),
        ...ranks(row).map((rank) => rankText(rank)),
      ),
    );
  const names = found.pairs.map(({ source, target }) => `${visible(source)} → ${visible(target)}`);
  live.answer.replaceChildren(
    table("Heads by the score of the question", ["Head", "Sign", "Score", "Control", ...names], rows),
    el(
      "div",
      { class: "buttons" },
      button("Save as relation", () => saveRelation(live)),
    ),
  );
}

function saveRelation(live) {
  const { pairs } = live.question.body;
  const body = { name: "my relation", pairs };
  void ask(live, "/api/relation", body, ({ name, text }) => {
    save(name, new Blob([text], { type: "application/json" }));
    live.status.textContent = `Saved ${name}; headatlas map MODEL --relations ${name} tests 30 sources or more.`;
  });
}

function showWord(live, found) {
  const most = Math.max(...found.rows.map((row) => row.gain));
  colour(live, `gain of ${visible(found.word)}`, found.rows, (row) => row.gain, [0, most || 1]);
  const rows = found.rows
    .slice(0, SHOWN)
    .map((row) =>
      line(
        headButton(live, row),
        row.gain.toFixed(3),
        rankText(row.rank, found.can_be_target),
        rankText(row.suppression_rank, found.can_be_target),
        listed(row.promoted),
        listed(row.suppressed),
      ),
    );
  const columns = ["Head", "Gain", "Rank of the word", "Suppressed at", "Promotes", "Suppresses"];
  live.answer.replaceChildren(table("Heads by gain", columns, rows));
}

/** A text: its tokens as buttons; the heads by where they look; one head's attention on the tokens. */
function showText(live, found) {
  const text = { tokens: found.tokens, rows: found.rows, head: null, query: null, body: live.question.body };
  live.text = text;
  colour(live, "attention to the first token of the text", found.rows, (row) => row.first_position, [0, 1]);
  text.buttons = found.tokens.map((token, at) =>
    button(visible(token), () => choose(live, at), { class: "token", "aria-pressed": "false" }),
  );
  text.buttons.forEach((each, at) => {
    each.addEventListener("pointerenter", () => look(live, at));
    each.addEventListener("focus", () => look(live, at));
  });
  text.said = el("p", { class: "quiet", "aria-live": "polite" });
  text.table = el("div", {});
  live.answer.replaceChildren(
    el("div", { class: "tokens", role: "group", "aria-label": "Tokens of the text" }, ...text.buttons),
    text.said,
    text.table,
  );
  text.said.textContent =
    "Choose a head to see where it looks; choose a token to see which heads look from there.";
  text.table.replaceChildren(looksTable(live, text));
}

function looksTable(live, text) {
  const token = (at) => `'${visible(text.tokens[at])}'`;
  const rows = text.rows.slice(0, SHOWN).map((row) => {
    const looks = row.weights.map(
      (each) => `${token(each.query)} ← ${token(each.key)} ${each.attention.toFixed(2)}`,
    );
    return line(chooser(live, row), row.first_position.toFixed(2), looks.join(", "));
  });
  return table("Heads by where they look", ["Head", "To the first token", "Strongest looks elsewhere"], rows);
}

/** A button that shows one head in the text, and opens its card. */
function chooser(live, row) {
  const cell = cellOf(live, row);
  return button(
    headName(live.app.atlas, cell),
    () => {
      live.app.select(cell);
      const { text } = live;
      const body = { ...text.body, layer: row.layer, head: row.head };
      void ask(live, "/api/text/head", body, (found) => {
        live.status.textContent = found.caption;
        text.head = found;
        look(live, text.query ?? text.tokens.length - 1);
      });
    },
    { class: "link" },
  );
}

/** Which heads look from a token. */
function choose(live, at) {
  const { text } = live;
  text.query = at;
  text.buttons.forEach((each, i) => each.setAttribute("aria-pressed", String(i === at)));
  void ask(live, "/api/text/look", { ...text.body, query: at }, (found) => {
    live.status.textContent = found.caption;
    const title = `largest attention from '${visible(text.tokens[at])}'`;
    colour(live, title, found.rows, (row) => row.attention, [0, 1]);
    const rows = found.rows.slice(0, SHOWN).map((row) => {
      const key = `'${visible(text.tokens[row.key])}' (${row.key})`;
      return line(chooser(live, row), key, row.attention.toFixed(2));
    });
    text.table.replaceChildren(
      table("Heads by attention from this token", ["Head", "Looks at", "Attention"], rows),
      button("Back to all heads", () => text.table.replaceChildren(looksTable(live, text))),
    );
    look(live, at);
  });
}

/** Shade the tokens by where the chosen head looks from one of them, and say what it writes there. */
function look(live, at) {
  const { text } = live;
  if (!text?.head) return;
  const weights = text.head.pattern[at];
  text.buttons.forEach((each, i) => each.setAttribute("data-weight", String(weightStep(weights[i] ?? 0))));
  const { promoted, suppressed } = text.head.written[at];
  const name = `${text.head.layer}.${text.head.head}`;
  const most = weights.indexOf(Math.max(...weights));
  text.said.textContent =
    `Head ${name} from '${visible(text.tokens[at])}' looks most at '${visible(text.tokens[most])}' ` +
    `(${weights[most].toFixed(2)}); writes there: promotes ${listed(promoted)}, suppresses ${listed(suppressed)}`;
}

void mounted.then((app) => app && start(app));
